"""The settings a chunk is read with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tasks.contracts.base import Contract
from tasks.contracts.errors import BadData, BadRecipe
from tasks.contracts.recipe_data import DataRecipe, RowFormat, SplitRecipe, Task
from tasks.load.chunking import Chunk
from tasks.load.row_formats import CLASSES, RowFormats, check_settings

Format = Literal["jsonl", "csv", "parquet", "arrow", "text-folders"]
RESERVED = ("text", "text_pair", "label", "hash_hi", "hash_lo", "raw", "split")
"""Column names of a shard, which a kept column cannot have."""


class Reading(Contract):
    """All that decides what a piece is read as.

    Attributes:
        format: Of the file.
        text, text_pair, label, keep_columns, encoding, delimiter, split: As the recipe says; for
            language models, `text_pair` and `label` are empty.
        task: As the recipe says.
        row_format, named: For language models, the format of a row, and columns that are called
            otherwise (`data.columns`).
        split_as: The split of the whole file, where file names say it; else 0.
        limit: Most bytes of a record. It refuses or accepts, and changes nothing else.
    """

    cache_key_excludes = frozenset({"limit"})

    format: Format
    text: str
    text_pair: str
    label: str
    keep_columns: tuple[str, ...]
    encoding: str
    delimiter: str
    split: SplitRecipe
    split_as: int
    limit: int
    task: Task
    row_format: RowFormat
    named: dict[str, str]

    @classmethod
    def of(
        cls, data: DataRecipe, format: Format, suffix: str, split_as: int, task: Task = CLASSES
    ) -> Reading:
        """The settings for one file.

        Args:
            data: The recipe's.
            format: The file's.
            suffix: Its extension: `.tsv` sets the delimiter.
            split_as: Its split by its name, or 0.
            task: The recipe's.

        Raises:
            BadRecipe: A kept column has a reserved name, or settings do not fit the task.
        """
        classes = task == CLASSES
        check_settings(task, data.row_format, data.columns)
        if not classes:
            _check_language(data, format, task)
        # A label may be kept under its own name: that is the shard's label column.
        kept = tuple(
            name
            for name in data.keep_columns
            if not classes or name != data.label or name != "label"
        )
        reserved = RESERVED if classes else (*RESERVED, "example")
        taken = sorted(set(kept) & set(reserved))
        if taken:
            raise BadRecipe(
                "data.keep_columns",
                f"{taken[0]!r}, a name that the house uses itself",
                f"names other than {', '.join(reserved)}",
                f"rename the column {taken[0]!r} in the data",
            )
        return cls(
            format=format,
            text=data.text,
            text_pair=data.text_pair if classes else "",
            label=data.label if classes else "",
            keep_columns=kept,
            encoding=data.encoding,
            delimiter="\t" if suffix == ".tsv" and data.delimiter == "," else data.delimiter,
            split=data.split,
            split_as=split_as,
            limit=int(data.max_record_mb * 1e6),
            task=task,
            row_format="auto" if classes else data.row_format,
            # The text column has a setting of its own, which names it here too.
            named={} if classes else {"text": data.text, **data.columns},
        )

    @property
    def forms(self) -> RowFormats:
        """The forms that rows may have; of a task for language models."""
        return RowFormats(
            self.task, self.row_format, self.named, self.format in ("parquet", "arrow")
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, each once."""
        texts = (self.text, self.text_pair) if self.task == CLASSES else self.forms.columns
        names = [*texts, *self.keep_columns]
        if self.format != "text-folders":
            names += [self.label, self.split.column, self.split.group_by]
        return tuple(dict.fromkeys(filter(None, names)))


def _check_language(data: DataRecipe, format: Format, task: Task) -> None:
    for name in ("text_pair", "labels"):
        if getattr(data, name):
            raise BadRecipe(
                f"data.{name}",
                f"a setting that only {CLASSES} has",
                f"none for {task}",
                "leave it out; data.columns names the columns",
            )
    if format == "text-folders" and (
        task != "completion" or data.row_format not in ("auto", "text")
    ):
        raise BadRecipe(
            "data.format",
            "text-folders, which hold plain texts",
            "texts for the task completion, with data.row_format auto or text",
            "set task to completion, or read another format",
        )


@dataclass(frozen=True)
class Job:
    """One piece to read.

    Attributes:
        piece, reading: What, and how.
        name: The file's name in messages.
        path: The file.
        files: For text folders: label, name and path of each of the piece's files.
        out: An empty folder for the shards, `0`, `1`…
    """

    piece: Chunk
    reading: Reading
    name: str
    path: str
    out: str
    files: tuple[tuple[str, str, str], ...] = ()


def missing_column(where: str, name: str, setting: str, found: Iterable[str]) -> BadData:
    """The error for a column that is not there.

    Args:
        where: File and row.
        name: The column.
        setting: The recipe field that names it.
        found: The columns that are there.
    """
    names = list(found)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(repr(each) for each in names[:20]) or "none"
    return BadData(
        where,
        f"no column {name!r} (columns: {listed})",
        f"the column that {setting} names",
        f"set {setting} to {near[0]!r}" if near else f"set {setting} to one of these columns",
    )
