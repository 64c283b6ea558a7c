"""Reads the records of a piece, in whatever format, into rows; refuses what cannot be trained on.

Each format gives its records as dictionaries; what a record must be is checked in one place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tasks.contracts.errors import BadData
from tasks.contracts.recipe_data import RowFormat
from tasks.load.chat_rows import kind
from tasks.load.chunking import LONGEST
from tasks.load.encodings import too_long
from tasks.load.read_settings import Job, Reading, missing_column
from tasks.load.read_tables import read_columnar
from tasks.load.read_text import read_csv, read_folders, read_jsonl
from tasks.load.row_formats import CLASSES, RowFormats
from tasks.load.splits import SPLIT_WORDS


@dataclass
class Rows:
    """Rows as columns, in order.

    Attributes:
        texts, pairs, labels, groups: Values; `pairs` and `groups` only where the recipe names such
            a column.
        forms, examples, answers: For language models, of each row; `labels` are empty then.
        answer_lengths: Characters of all answers.
        kept: The kept columns' values, row by row.
        splits: Split numbers, where a column says them.
        positions: Places in the piece.
        present: In how many rows each optional column is.
        columns: The first record's columns.
        characters: Of all texts.
    """

    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    forms: list[RowFormat] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    answer_lengths: list[int] = field(default_factory=list)
    kept: list[list[str]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    present: Counter = field(default_factory=Counter)
    columns: tuple[str, ...] = ()
    characters: int = 0


def read_rows(job: Job) -> Iterator[Rows]:
    """The rows of a piece; a large columnar one comes in several parts.

    Raises:
        BadData: A row that cannot be trained on, by file and row.
    """
    readers = {
        "jsonl": read_jsonl,
        "csv": read_csv,
        "parquet": read_columnar,
        "arrow": read_columnar,
        "text-folders": read_folders,
    }
    rows = Rows()
    forms = job.reading.forms if job.reading.task != CLASSES else None
    for position, where, record in readers[job.reading.format](job):
        # Only columnar pieces grow so far: text is cut below it.
        if rows.characters >= LONGEST and job.reading.format in ("parquet", "arrow"):
            yield rows
            rows = Rows()
        if forms is None:
            _take_classified(rows, where, record, job.reading)
        else:
            _take_example(rows, where, record, job.reading, forms)
        _take_rest(rows, position, where, record, job.reading)
    if rows.texts:
        yield rows


# One row


def _take_classified(rows: Rows, where: str, record: dict[str, Any], reading: Reading) -> None:
    text = _text(record, reading.text, "data.text", where, reading.limit)
    rows.texts.append(text)
    rows.characters += len(text)
    if reading.text_pair:
        pair = _text(record, reading.text_pair, "data.text_pair", where, reading.limit)
        rows.pairs.append(pair)
        rows.characters += len(pair)
    rows.labels.append(_label(record, reading.label, where))


def _take_example(
    rows: Rows, where: str, record: dict[str, Any], reading: Reading, forms: RowFormats
) -> None:
    found = forms.take(record, where)
    if len(found.example) > reading.limit:
        raise too_long(where, reading.limit)
    rows.texts.append(found.text)
    rows.characters += len(found.example)
    rows.labels.append("")
    rows.forms.append(found.row_format)
    rows.examples.append(found.example)
    rows.answers.append(found.answer)
    rows.answer_lengths += found.lengths


def _take_rest(
    rows: Rows, position: int, where: str, record: dict[str, Any], reading: Reading
) -> None:
    if reading.keep_columns:
        rows.kept.append([_as_string(record.get(name)) for name in reading.keep_columns])
        rows.present.update(name for name in reading.keep_columns if name in record)
    if reading.split.by == "column":
        rows.splits.append(_split_word(record, reading.split.column, where))
    if reading.split.group_by:
        name = reading.split.group_by
        rows.groups.append(_as_string(record.get(name)))
        rows.present.update([name] if name in record else [])
    rows.positions.append(position)
    if not rows.columns:
        rows.columns = tuple(record)[:100]


def _text(record: dict[str, Any], name: str, setting: str, where: str, limit: int) -> str:
    value = record.get(name)
    if isinstance(value, str):
        if len(value) > limit:
            raise too_long(where, limit)
        if value and not value.isspace():
            return value
    if name not in record:
        raise missing_column(where, name, setting, record)
    empty = value is None or isinstance(value, str)
    raise BadData(
        where,
        (f"no text in {name!r}" if empty else f"{kind(value)} in {name!r}"),
        "a text that is not empty" if empty else "a text",
        f"fill in or remove the row{'' if empty else f'; {setting} must name a column of texts'}",
    )


def _label(record: dict[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if isinstance(value, str):
        label = value.strip()
        if label:
            return label
    elif isinstance(value, bool):
        return "true" if value else "false"
    elif isinstance(value, int):
        return str(value)
    elif isinstance(value, float) and value.is_integer():
        # Whole numbers become fractions wherever a table had a gap.
        return str(int(value))
    if name not in record:
        raise missing_column(where, name, "data.label", record)
    if value is None or value != value or isinstance(value, str):
        raise BadData(where, f"no label in {name!r}", "a label", "fill in or remove the row")
    raise BadData(
        where,
        f"{kind(value)} as label in {name!r}",
        "a text, a whole number or a boolean",
        "name the column of classes as data.label",
    )


def _as_string(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def _split_word(record: dict[str, Any], name: str, where: str) -> int:
    if name not in record:
        raise missing_column(where, name, "data.split.column", record)
    split = SPLIT_WORDS.get(str(record[name]).strip().lower())
    if split is None:
        raise BadData(
            where,
            f"{record[name]!r} in {name!r}",
            "train, validation or test",
            "correct the row, or name another column as data.split.column",
        )
    return split
