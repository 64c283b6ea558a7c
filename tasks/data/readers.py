"""Reads the records of a piece, in whatever format, into rows; refuses what cannot be trained on.

Each format gives its records as dictionaries; what a record must be is checked in one place.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import difflib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from tasks.contracts.base import Contract
from tasks.contracts.training import DataRecipe, Form, SplitRecipe, Task
from tasks.data.cut import (
    LONGEST,
    Piece,
    arrow_batches,
    bad_encoding,
    decode,
    encodings,
    not_text,
    too_long,
)
from tasks.data.forms import CLASSES, Forms, check_settings, kind
from tasks.data.splits import SPLIT_WORDS
from tasks.errors import BadData, BadRecipe

Format = Literal["jsonl", "csv", "parquet", "arrow", "text-folders"]
RESERVED = ("text", "text_pair", "label", "hash_hi", "hash_lo", "raw", "split")
"""Column names of a shard, which a kept column cannot have."""

_COLUMNAR_ROWS = 1024


class Reading(Contract):
    """All that decides what a piece is read as.

    Attributes:
        format: Of the file.
        text, text_pair, label, keep_columns, encoding, delimiter, split: As the recipe says; for
            language models, `text_pair` and `label` are empty.
        task: As the recipe says.
        form, named: For language models, the form of a row, and a form's columns that are called
            otherwise (`data.columns`).
        split_as: The split of the whole file, where file names say it; else 0.
        limit: Most bytes of a record. It refuses or accepts, and changes nothing else.
    """

    not_in_key = frozenset({"limit"})

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
    form: Form
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
        check_settings(task, data.form, data.columns)
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
            form="auto" if classes else data.form,
            # The text column has a setting of its own, which names it here too.
            named={} if classes else {"text": data.text, **data.columns},
        )

    @property
    def forms(self) -> Forms:
        """The forms that rows may have; of a task for language models."""
        return Forms(self.task, self.form, self.named, self.format in ("parquet", "arrow"))

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
    if format == "text-folders" and (task != "completion" or data.form not in ("auto", "text")):
        raise BadRecipe(
            "data.format",
            "text-folders, which hold plain texts",
            "texts for the task completion, with data.form auto or text",
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

    piece: Piece
    reading: Reading
    name: str
    path: str
    out: str
    files: tuple[tuple[str, str, str], ...] = ()


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
    forms: list[Form] = field(default_factory=list)
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
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "parquet": _read_columnar,
        "arrow": _read_columnar,
        "text-folders": _read_folders,
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
    rows: Rows, where: str, record: dict[str, Any], reading: Reading, forms: Forms
) -> None:
    found = forms.take(record, where)
    if len(found.example) > reading.limit:
        raise too_long(where, reading.limit)
    rows.texts.append(found.text)
    rows.characters += len(found.example)
    rows.labels.append("")
    rows.forms.append(found.form)
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


# Formats: each gives position, place for messages, and record by record


def _read_jsonl(job: Job) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, line in enumerate(_span(job).split(b"\n")):  # only a line feed ends a line
        if not line.strip():
            continue
        position = job.piece.first + number + 1
        where = f"{job.name}:{position}"
        try:
            record = _parse(line, job, position)
        except orjson.JSONDecodeError as error:
            raise BadData(
                where,
                f"malformed JSON ({str(error).partition(':')[0]}): {_excerpt(line)}",
                "one JSON object per line",
                "correct the line",
            ) from None
        if not isinstance(record, dict):
            raise BadData(
                where, f"{kind(record)}, not an object", "one JSON object per line", "correct it"
            )
        yield number, where, record


def _parse(line: bytes, job: Job, position: int) -> Any:
    if codecs.lookup(encodings(job.reading.encoding)[0]).name == "utf-8":
        # Without the detour over a string, wherever that works.
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(line)
    return orjson.loads(_decoded(line, job, position))


def _span(job: Job) -> bytes:
    with open(job.path, "rb") as file:
        file.seek(job.piece.start)
        return file.read(job.piece.stop - job.piece.start)


def _decoded(data: bytes, job: Job, line: int) -> str:
    try:
        return decode(data, job.reading.encoding)
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise bad_encoding(job.name, line, job.reading.encoding, error) from None


def _decoded_lines(job: Job) -> str:
    data, first = _span(job), job.piece.first + 1
    if len(encodings(job.reading.encoding)) == 1:
        return _decoded(data, job, first)
    # A line in the second encoding must not change how the others are read.
    lines = data.splitlines(keepends=True)
    return "".join(_decoded(line, job, first + number) for number, line in enumerate(lines))


def _excerpt(line: bytes) -> str:
    text = line[:60].decode(errors="replace").strip()
    return f"{text}…" if len(line) > 60 else text


def _read_csv(job: Job) -> Iterator[tuple[int, str, dict[str, Any]]]:
    header = _csv_header(job)
    text = _decoded_lines(job)
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=job.reading.delimiter, strict=True)
    line = 0
    while True:
        where = f"{job.name}:{job.piece.first + line + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise BadData(
                where, f"malformed CSV ({error})", "fields quoted as in RFC 4180", "correct it"
            ) from None
        if row is None:
            return
        if row:
            if len(row) != len(header):
                raise BadData(
                    where,
                    f"{len(row)} fields",
                    f"{len(header)}, as in the header",
                    f"quote fields that contain {job.reading.delimiter!r} or a line break",
                )
            yield line, where, dict(zip(header, row, strict=True))
        line = rows.line_num


def _csv_header(job: Job) -> list[str]:
    start, stop = job.piece.head
    with open(job.path, "rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    text = _decoded(data, job, 1)
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=job.reading.delimiter), [])
    names = [name.strip() for name in header]
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if any(name in job.reading.columns for name in doubled):
        raise BadData(
            f"{job.name}:1",
            f"two columns {doubled[0]!r}",
            "one column of each name",
            "rename or remove one",
        )
    _check_header(job, names)
    return names


def _check_header(job: Job, names: list[str]) -> None:
    where, reading = f"{job.name}:1", job.reading
    try:
        if reading.task != CLASSES:
            reading.forms.check_columns(names, where)
        for setting in ("text", "label") if reading.task == CLASSES else ():
            if getattr(reading, setting) not in names:
                raise missing_column(where, getattr(reading, setting), f"data.{setting}", names)
    except BadData as error:
        raise _other_delimiter(job, names) or error from None


def _other_delimiter(job: Job, names: list[str]) -> BadData | None:
    likely = [mark for mark in ",;\t|" if len(names) == 1 and mark in names[0]]
    if not likely:
        return None
    return BadData(
        f"{job.name}:1",
        f"one column, {names[0]!r}",
        f"columns separated by {job.reading.delimiter!r} (data.delimiter)",
        f"set data.delimiter to {likely[0]!r}",
    )


def _read_folders(job: Job) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, (label, name, path) in enumerate(job.files):
        data = Path(path).read_bytes()
        if b"\0" in data:
            raise not_text(name)
        try:
            text = decode(data, job.reading.encoding)
        except UnicodeDecodeError as error:
            line = 1 + data.count(b"\n", 0, error.start)
            raise bad_encoding(name, line, job.reading.encoding, error) from None
        record = {job.reading.named.get("text", job.reading.text): text.removeprefix("\ufeff")}
        yield number, name, record | ({job.reading.label: label} if job.reading.label else {})


def _read_columnar(job: Job) -> Iterator[tuple[int, str, dict[str, Any]]]:
    import pyarrow as pa

    position = 0
    try:
        for batch, names in _batches(job):
            columns = list(batch.schema.names)
            values = [column.to_pylist() for column in batch.columns]
            for row in zip(*values, strict=True):
                record = dict(zip(columns, row, strict=True))
                if names is not None:
                    record[job.reading.label] = _class_name(record[job.reading.label], names)
                yield position, f"{job.name}:{job.piece.first + position + 1}", record
                position += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise bad_table(job.name, error) from None


def _batches(job: Job) -> Iterator[tuple[Any, list[str] | None]]:
    import pyarrow.parquet as pq

    if job.reading.format == "arrow":
        for batch in arrow_batches(Path(job.path), job.piece.start, job.piece.stop):
            names = class_names(batch.schema, job.reading.label)
            wanted = [name for name in job.reading.columns if name in batch.schema.names]
            for start in range(0, batch.num_rows, _COLUMNAR_ROWS):
                yield batch.select(wanted).slice(start, _COLUMNAR_ROWS), names
        return
    with pq.ParquetFile(job.path) as table:
        names = class_names(table.schema_arrow, job.reading.label)
        wanted = [name for name in job.reading.columns if name in table.schema_arrow.names]
        groups = list(range(job.piece.start, job.piece.stop))
        for batch in table.iter_batches(_COLUMNAR_ROWS, row_groups=groups, columns=wanted):
            yield batch, names


def check_table(schema: Any, reading: Reading, name: str) -> bytes:
    """Check a columnar file's columns before its rows are read.

    Returns:
        What else its rows' meaning depends on, to be part of each piece's digest.

    Raises:
        BadData: A column is missing, or the text column holds no text.
    """
    if reading.task == CLASSES:
        _check_text_columns(schema, reading, name)
    else:
        _check_form_columns(schema, reading, name)
    types = [
        [each, str(schema.field(each).type)] for each in reading.columns if each in schema.names
    ]
    return orjson.dumps([types, class_names(schema, reading.label)])


def _check_text_columns(schema: Any, reading: Reading, name: str) -> None:
    import pyarrow as pa

    for setting in ("text", "text_pair", "label"):
        column = getattr(reading, setting)
        if column and column not in schema.names:
            raise missing_column(name, column, f"data.{setting}", schema.names)
    for setting in ("text", "text_pair"):
        column = getattr(reading, setting)
        type_ = schema.field(column).type if column else pa.string()
        type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
        if str(type_) not in ("string", "large_string", "string_view"):
            raise BadData(
                name,
                f"a column {column!r} of type {type_}",
                "a column of texts",
                f"name another column as data.{setting}",
            )


def _check_form_columns(schema: Any, reading: Reading, name: str) -> None:
    """Whether there are the columns of a form; what is in them is checked row by row."""
    import pyarrow as pa

    reading.forms.check_columns(schema.names, name)
    for column in set(reading.columns) & set(schema.names):
        type_ = schema.field(column).type
        if pa.types.is_nested(type_) and "dictionary<" in str(type_):
            # A batch's bytes do not hold what its numbers stand for.
            raise BadData(
                name,
                f"dictionary-encoded values within the column {column!r}",
                "plain values in lists and objects",
                "write the file again without dictionaries, or as Parquet",
            )


def parquet_schema(path: Path) -> Any:
    """A Parquet file's columns. Raises OSError, pyarrow.ArrowInvalid: It is none."""
    import pyarrow.parquet as pq

    return pq.read_schema(path)


def arrow_schema(path: Path) -> Any:
    """The columns of an Arrow IPC file or stream. Raises: As `parquet_schema`."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).schema
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).schema


def class_names(schema: Any, label: str) -> list[str] | None:
    """The names of `datasets`' ClassLabel numbers, where a table's metadata has them."""
    try:
        info = orjson.loads((schema.metadata or {})[b"huggingface"])
        feature = info["info"]["features"][label]
        return feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def _class_name(value: Any, names: list[str]) -> Any:
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return None if value == -1 else value


def bad_table(name: str, error: Exception) -> BadData:
    """The error for a Parquet or Arrow file that cannot be read."""
    return BadData(
        name,
        f"a file that cannot be read ({str(error).splitlines()[0][:200]})",
        "a whole Parquet or Arrow file",
        "write it again: the upload or download was probably cut off",
    )
