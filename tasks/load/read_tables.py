"""Read rows from Parquet and Arrow chunks, and check their schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tasks.contracts.errors import BadData
from tasks.load.chunk_tables import arrow_batches
from tasks.load.read_settings import Job, Reading, missing_column
from tasks.load.row_formats import CLASSES

_COLUMNAR_ROWS = 1024


def read_columnar(job: Job) -> Iterator[tuple[int, str, dict[str, Any]]]:
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
