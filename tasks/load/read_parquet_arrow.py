"""Reads rows from chunks of Parquet and Arrow files, and checks their schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tasks.contracts.errors import BadData
from tasks.load.chunk_tables import arrow_batches
from tasks.load.read_settings import ReadJob, ReadSettings, missing_column
from tasks.load.row_formats import CLASSIFICATION

_ROWS_PER_BATCH = 1024


def read_columnar(job: ReadJob) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield position, place for messages and record of each row of a Parquet or Arrow chunk.

    Raises:
        BadData: The file cannot be read.
    """
    import pyarrow as pa

    position = 0
    try:
        for batch, names in _batches(job):
            columns = list(batch.schema.names)
            values = [column.to_pylist() for column in batch.columns]
            for row in zip(*values, strict=True):
                record = dict(zip(columns, row, strict=True))
                if names is not None:
                    record[job.settings.label] = _class_name(record[job.settings.label], names)
                yield position, f"{job.name}:{job.chunk.first + position + 1}", record
                position += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise bad_table(job.name, error) from None


def _batches(job: ReadJob) -> Iterator[tuple[Any, list[str] | None]]:
    import pyarrow.parquet as pq

    if job.settings.format == "arrow":
        for batch in arrow_batches(Path(job.path), job.chunk.start, job.chunk.stop):
            names = class_names(batch.schema, job.settings.label)
            wanted = [name for name in job.settings.columns if name in batch.schema.names]
            for start in range(0, batch.num_rows, _ROWS_PER_BATCH):
                yield batch.select(wanted).slice(start, _ROWS_PER_BATCH), names
        return
    with pq.ParquetFile(job.path) as table:
        names = class_names(table.schema_arrow, job.settings.label)
        wanted = [name for name in job.settings.columns if name in table.schema_arrow.names]
        groups = list(range(job.chunk.start, job.chunk.stop))
        for batch in table.iter_batches(_ROWS_PER_BATCH, row_groups=groups, columns=wanted):
            yield batch, names


def check_table(schema: Any, settings: ReadSettings, name: str) -> bytes:
    """Check a columnar file's columns before its rows are read.

    Returns:
        What else the meaning of its rows depends on (column types, label names), to be part of
        each chunk's digest.

    Raises:
        BadData: A column is missing, or the text column does not hold text.
    """
    if settings.task == CLASSIFICATION:
        _check_text_columns(schema, settings, name)
    else:
        _check_row_format(schema, settings, name)
    types = [
        [each, str(schema.field(each).type)] for each in settings.columns if each in schema.names
    ]
    return orjson.dumps([types, class_names(schema, settings.label)])


def _check_text_columns(schema: Any, settings: ReadSettings, name: str) -> None:
    import pyarrow as pa

    for setting in ("text", "text_pair", "label"):
        column = getattr(settings, setting)
        if column and column not in schema.names:
            raise missing_column(name, column, f"data.{setting}", schema.names)
    for setting in ("text", "text_pair"):
        column = getattr(settings, setting)
        type_ = schema.field(column).type if column else pa.string()
        type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
        if str(type_) not in ("string", "large_string", "string_view"):
            raise BadData(
                name,
                f"a column {column!r} of type {type_}",
                "a column of strings",
                f"set data.{setting} to another column",
            )


def _check_row_format(schema: Any, settings: ReadSettings, name: str) -> None:
    """Check that a row format has its columns; their values are checked row by row."""
    import pyarrow as pa

    settings.row_formats.check_columns(schema.names, name)
    for column in set(settings.columns) & set(schema.names):
        type_ = schema.field(column).type
        if pa.types.is_nested(type_) and "dictionary<" in str(type_):
            # The bytes of a batch hold indices only, so they cannot identify its content.
            raise BadData(
                name,
                f"dictionary-encoded values in the nested column {column!r}",
                "plain values in lists and structs",
                "write the file without dictionary encoding, or as Parquet",
            )


def parquet_schema(path: Path) -> Any:
    """Return a Parquet file's schema.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is not a valid Parquet file.
    """
    import pyarrow.parquet as pq

    return pq.read_schema(path)


def arrow_schema(path: Path) -> Any:
    """Return the schema of an Arrow IPC file or stream.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is neither.
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).schema
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).schema


def class_names(schema: Any, label: str) -> list[str] | None:
    """Return the names of a `datasets.ClassLabel` column; None if the label is not one."""
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
    """Return the error for a Parquet or Arrow file that cannot be read."""
    return BadData(
        name,
        f"an unreadable file ({str(error).splitlines()[0][:200]})",
        "a complete Parquet or Arrow file",
        "write it again; the upload or download was probably interrupted",
    )
