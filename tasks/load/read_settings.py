"""The settings that decide how a chunk is read, and the job of reading one chunk."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tasks.contracts.base import Contract
from tasks.contracts.errors import BadRecipe, MissingColumn
from tasks.contracts.recipe_data import DataRecipe, RowFormat, SplitRecipe, Task
from tasks.contracts.task_tables import GROUP_COLUMN
from tasks.load.chunking import Chunk
from tasks.load.row_formats import CLASSIFICATION, RowFormats, check_settings

Format = Literal["jsonl", "csv", "parquet", "arrow", "text-folders"]
RESERVED_COLUMNS = (
    "text",
    "text_pair",
    "label",
    "hash_hi",
    "hash_lo",
    "raw",
    "split",
    GROUP_COLUMN,
)
"""Column names of a shard, which a kept column cannot have."""


class ReadSettings(Contract):
    """Everything that decides what the rows of a chunk become.

    Attributes:
        format: The file's format.
        text, text_pair, label, label_map, normalize_labels, keep_columns, encoding, delimiter,
            split: As in the recipe; for language models, those of labels and pairs are empty.
        fixed_split: The split of the whole file, if file names decide it; else 0.
        max_record_bytes: Maximum size of a record. Not in the cache key: a row that is read is
            the same with any limit.
        task: As in the recipe.
        row_format: For language models, the expected row format, or `auto`.
        column_names: For language models, the data's column for each field of a row format, where
            the names differ (`data.columns`).
    """

    cache_key_excludes = frozenset({"max_record_bytes"})

    format: Format
    text: str
    text_pair: str
    label: str
    label_map: dict[str, str]
    normalize_labels: bool
    keep_columns: tuple[str, ...]
    encoding: str
    delimiter: str
    split: SplitRecipe
    fixed_split: int
    max_record_bytes: int
    task: Task
    row_format: RowFormat
    column_names: dict[str, str]

    @classmethod
    def of(
        cls,
        data: DataRecipe,
        format: Format,
        suffix: str,
        fixed_split: int,
        task: Task = CLASSIFICATION,
    ) -> ReadSettings:
        """Return the settings for one file.

        Args:
            data: The recipe's settings.
            format: The file's format.
            suffix: Its extension: `.tsv` sets the delimiter.
            fixed_split: Its split, if its name decides it; else 0.
            task: The recipe's task.

        Raises:
            BadRecipe: A kept column has a reserved name, or settings do not fit the task.
        """
        check_settings(task, data.row_format, data.columns)
        labelled = task == CLASSIFICATION
        if not labelled:
            _check_language(data, format, task)
        return cls(
            format=format,
            text=data.text,
            text_pair=data.text_pair if labelled else "",
            label=data.label if labelled else "",
            label_map=data.label_map if labelled else {},
            normalize_labels=labelled and data.normalize_labels,
            keep_columns=_kept_columns(data, labelled),
            encoding=data.encoding,
            delimiter="\t" if suffix == ".tsv" and data.delimiter == "," else data.delimiter,
            split=data.split,
            fixed_split=fixed_split,
            max_record_bytes=int(data.max_record_mb * 1e6),
            task=task,
            row_format="auto" if labelled else data.row_format,
            # `data.text` names the text column of language-model rows too.
            column_names={} if labelled else {"text": data.text, **data.columns},
        )

    @property
    def row_formats(self) -> RowFormats:
        """The row formats to recognise, for language models."""
        columnar = self.format in ("parquet", "arrow")
        return RowFormats(self.task, self.row_format, self.column_names, columnar)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, each once."""
        labelled = self.task == CLASSIFICATION
        texts = (self.text, self.text_pair) if labelled else self.row_formats.columns
        names = [*texts, *self.keep_columns]
        if self.format != "text-folders":
            names += [self.label, self.split.column, self.split.group_by]
        return tuple(dict.fromkeys(filter(None, names)))


def _kept_columns(data: DataRecipe, labelled: bool) -> tuple[str, ...]:
    # `label` itself may be kept: the shard has it anyway.
    kept = tuple(
        name for name in data.keep_columns if not labelled or name != data.label or name != "label"
    )
    reserved = RESERVED_COLUMNS if labelled else (*RESERVED_COLUMNS, "example")
    clashes = sorted(set(kept) & set(reserved))
    if clashes:
        raise BadRecipe(
            "data.keep_columns",
            f"{clashes[0]!r}, a reserved column name",
            f"names other than {', '.join(reserved)}",
            f"rename the column {clashes[0]!r} in the data",
        )
    return kept


def _check_language(data: DataRecipe, format: Format, task: Task) -> None:
    for name in ("text_pair", "labels", "label_map", "normalize_labels"):
        if getattr(data, name):
            raise BadRecipe(
                f"data.{name}",
                f"a setting for {CLASSIFICATION} only",
                f"no such setting for the task {task}",
                "leave it out; data.columns names the columns",
            )
    if format == "text-folders" and (
        task != "completion" or data.row_format not in ("auto", "text")
    ):
        raise BadRecipe(
            "data.format",
            "text-folders, which hold plain texts",
            "the task completion, with data.row_format auto or text",
            "set task to completion, or use another format",
        )


@dataclass(frozen=True)
class ReadJob:
    """One chunk to read.

    Attributes:
        chunk: The chunk.
        settings: How to read it.
        name: The file's name in messages.
        path: The local file.
        out: An empty folder for the shards `0`, `1`…
        files: For text folders: label, name and path of each file in the chunk.
    """

    chunk: Chunk
    settings: ReadSettings
    name: str
    path: str
    out: str
    files: tuple[tuple[str, str, str], ...] = ()


def missing_column(
    where: str, name: str, setting: str, found: Iterable[str], without: str = ""
) -> MissingColumn:
    """Return the error for a column that the data do not have.

    Args:
        where: File and row.
        name: The missing column.
        setting: The recipe field that names it.
        found: The columns of the data.
        without: The setting's value for data without such a column, if it is optional.
    """
    names = list(found)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(repr(each) for each in names[:20]) or "none"
    return MissingColumn(
        where,
        f"no column {name!r} (columns: {listed})",
        f"the column that {setting} names",
        (f"set {setting} to {near[0]!r}" if near else f"set {setting} to one of these columns")
        + (f", or to {without} if the data have none" if without else ""),
    )
