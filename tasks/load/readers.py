"""Reads the records of a chunk, in any file format, into rows; refuses rows that cannot be used.

Each file format yields its records as dictionaries; the checks on records are all here.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tasks.contracts.errors import BadData, EmptyValue, MissingColumn
from tasks.contracts.recipe_data import RowFormat
from tasks.load.chat_rows import json_type
from tasks.load.chunking import MAX_CHUNK_BYTES
from tasks.load.encodings import too_long
from tasks.load.json_values import content_json
from tasks.load.labels import label_of, renamed_label
from tasks.load.read_csv import read_csv
from tasks.load.read_jsonl import read_jsonl
from tasks.load.read_parquet_arrow import read_columnar
from tasks.load.read_settings import ReadJob, ReadSettings, missing_column
from tasks.load.read_text_folders import read_text_folders
from tasks.load.row_formats import CLASSIFICATION, RowFormats
from tasks.load.splits import SPLIT_ALIASES

EMPTY_EXAMPLES = 5
"""Empty rows of a chunk that are listed."""


OWNERS = frozenset(
    f"{name}{end}"
    for name in (
        "account",
        "author",
        "client",
        "conversation",
        "customer",
        "doc",
        "document",
        "patient",
        "session",
        "speaker",
        "thread",
        "user",
    )
    for end in ("", "_id")
)
"""Columns whose equal values say that rows belong together. Of Parquet and Arrow files only columns
that the recipe names are read."""


@dataclass
class Rows:
    """Rows stored as columns, in order.

    Attributes:
        texts, pairs, labels, groups: One value per row; `pairs` and `groups` are empty unless the
            recipe names such a column.
        row_formats, examples, answers: For language models, one value per row; the labels are then
            empty strings.
        answer_lengths: Length of each answer in characters.
        kept: The kept columns' values, row by row.
        splits: Split numbers, if a column decides the split.
        positions: Positions in the chunk.
        present: In how many rows each optional column occurs.
        columns: The first record's columns.
        owners: How often each value of a column that looks like an owner occurs, if the recipe
            names no column to keep together by.
        characters: Total length of all texts.
        empty: Number of rows that were left out because they lack a text, a label or an answer.
        first_empty: Position, and what is missing, of the first few of these.
    """

    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    row_formats: list[RowFormat] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    answer_lengths: list[int] = field(default_factory=list)
    kept: list[list[str]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    present: Counter = field(default_factory=Counter)
    columns: tuple[str, ...] = ()
    owners: dict[str, Counter] = field(default_factory=dict)
    characters: int = 0
    empty: int = 0
    first_empty: list[tuple[int, str]] = field(default_factory=list)

    def add_empty(self, position: int, found: str) -> None:
        """Count a row that is left out."""
        self.empty += 1
        if len(self.first_empty) < EMPTY_EXAMPLES:
            self.first_empty.append((position, found))


def read_rows(job: ReadJob) -> Iterator[Rows]:
    """Yield the rows of a chunk, in several parts if a columnar chunk is large.

    Raises:
        BadData: A row cannot be used; the error names file and row.
    """
    readers = {
        "jsonl": read_jsonl,
        "csv": read_csv,
        "parquet": read_columnar,
        "arrow": read_columnar,
        "text-folders": read_text_folders,
    }
    rows = Rows()
    missing: MissingColumn | None = None
    row_formats = job.settings.row_formats if job.settings.task != CLASSIFICATION else None
    for position, where, record in readers[job.settings.format](job):
        # Only columnar chunks can grow this large: text is chunked by its size.
        if rows.characters >= MAX_CHUNK_BYTES and job.settings.format in ("parquet", "arrow"):
            yield rows
            rows = Rows()
        try:
            if row_formats is None:
                _add_labelled(rows, where, record, job.settings)
            else:
                _add_example(rows, where, record, job.settings, row_formats)
        except (EmptyValue, MissingColumn) as error:
            if isinstance(error, MissingColumn):
                if job.settings.format != "jsonl":
                    raise
                # In JSON lines, a row without a field is one whose field is empty, if others have
                # it.
                missing = missing or error
            # All empty rows are reported at once: the load step refuses or skips them.
            rows.add_empty(position, error.found)
            continue
        _add_metadata(rows, position, where, record, job.settings)
    if missing and not rows.texts:
        raise missing
    if rows.texts or rows.empty:
        yield rows


def _add_labelled(rows: Rows, where: str, record: dict[str, Any], settings: ReadSettings) -> None:
    # Nothing is added before everything was read: an empty value leaves out the whole row.
    limit = settings.max_record_bytes
    texts = [_text(record, settings.text, "data.text", where, limit)]
    if settings.text_pair:
        texts.append(_text(record, settings.text_pair, "data.text_pair", where, limit))
    label = _label(record, settings, where)
    rows.texts.append(texts[0])
    rows.pairs += texts[1:]
    rows.characters += sum(map(len, texts))
    rows.labels.append(label)


def _add_example(
    rows: Rows, where: str, record: dict[str, Any], settings: ReadSettings, row_formats: RowFormats
) -> None:
    parsed = row_formats.parse(record, where)
    if len(parsed.example) > settings.max_record_bytes:
        raise too_long(where, settings.max_record_bytes)
    rows.texts.append(parsed.text)
    rows.characters += len(parsed.example)
    rows.labels.append("")
    rows.row_formats.append(parsed.row_format)
    rows.examples.append(parsed.example)
    rows.answers.append(parsed.answer)
    rows.answer_lengths += parsed.lengths


def _add_metadata(
    rows: Rows, position: int, where: str, record: dict[str, Any], settings: ReadSettings
) -> None:
    if settings.keep_columns:
        rows.kept.append(
            [_to_string(record.get(name), name, where) for name in settings.keep_columns]
        )
        rows.present.update(name for name in settings.keep_columns if name in record)
    if settings.split.by == "column":
        rows.splits.append(_split_from_column(record, settings.split.column, where))
    if settings.split.group_by:
        name = settings.split.group_by
        rows.groups.append(_to_string(record.get(name), name, where))
        rows.present.update([name] if name in record else [])
    else:
        for name in record.keys() & OWNERS:
            # A conversation itself names no owner.
            if isinstance(record[name], str | int) and len(str(record[name])) <= 100:
                rows.owners.setdefault(name, Counter())[record[name]] += 1
    rows.positions.append(position)
    if not rows.columns:
        rows.columns = tuple(record)[:100]


def _text(record: dict[str, Any], name: str, setting: str, where: str, max_bytes: int) -> str:
    value = record.get(name)
    if isinstance(value, str):
        if len(value) > max_bytes:
            raise too_long(where, max_bytes)
        if value and not value.isspace():
            return value
    if name not in record:
        raise missing_column(where, name, setting, record)
    if value is None or isinstance(value, str):
        found, fix = f"no text in {name!r}", "fill in or remove the row"
        raise EmptyValue(where, found, "a non-empty text", fix)
    raise BadData(
        where,
        f"{json_type(value)} in {name!r}",
        "a text",
        f"fill in or remove the row; {setting} must name a column of texts",
    )


def _label(record: dict[str, Any], settings: ReadSettings, where: str) -> str:
    name = settings.label
    if name not in record:
        raise missing_column(where, name, "data.label", record)
    label = label_of(record[name], name, where)
    return renamed_label(label, settings.label_map, settings.normalize_labels)


def _to_string(value: Any, name: str, where: str) -> str:
    """Return a value as text, the same from every file format."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return str(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    try:
        return content_json(value)
    except (TypeError, ValueError):
        raise BadData(
            where,
            f"a value of type {type(value).__name__} in {name!r}",
            "a text, a number, a date, or JSON",
            f"write it as a text, or leave {name!r} out of the recipe",
        ) from None


def _split_from_column(record: dict[str, Any], name: str, where: str) -> int:
    if name not in record:
        raise missing_column(where, name, "data.split.column", record)
    split = SPLIT_ALIASES.get(str(record[name]).strip().lower())
    if split is None:
        raise BadData(
            where,
            f"{record[name]!r} in {name!r}",
            "train, validation or test",
            "correct the row, or set data.split.column to another column",
        )
    return split
