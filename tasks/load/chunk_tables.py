"""Splits Parquet and Arrow files into chunks of whole row groups or record batches."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

from tasks.load.chunk_text import BLOCK_BYTES
from tasks.load.chunking import Chunk, chunk_records


def chunk_parquet(path: Path, columns: tuple[str, ...], schema_key: bytes) -> Iterator[Chunk]:
    """Split a Parquet file between row groups, hashing only the columns that are read.

    Args:
        path: The file.
        columns: The columns that are read.
        schema_key: What else parsing depends on (column types, label names); hashed into every
            chunk's digest.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is not a valid Parquet file.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table, open(path, "rb") as raw:

        def groups() -> Iterator[tuple[bytes, int, int, int]]:
            for number in range(table.metadata.num_row_groups):
                group = table.metadata.row_group(number)
                digest, size = _group_digest(group, columns, raw)
                yield digest, size, number + 1, group.num_rows

        yield from chunk_records(groups(), 0, schema_key)


def _group_digest(group, columns: tuple[str, ...], raw: io.BufferedReader) -> tuple[bytes, int]:
    hashed, size = hashlib.sha256(b"%d" % group.num_rows), 0
    for number in range(group.num_columns):
        column = group.column(number)
        # A struct column has nested paths, and a name may contain a dot itself.
        if not f"{column.path_in_schema}.".startswith(tuple(f"{name}." for name in columns)):
            continue
        start = column.dictionary_page_offset or column.data_page_offset
        raw.seek(min(start, column.data_page_offset))
        left = column.total_compressed_size
        size += left
        hashed.update(column.path_in_schema.encode())
        while left:
            block = raw.read(min(left, BLOCK_BYTES))
            if not block:
                raise OSError("the file is cut off in a row group")
            hashed.update(block)
            left -= len(block)
    return hashed.digest(), size


def chunk_arrow(path: Path, columns: tuple[str, ...], schema_key: bytes) -> Iterator[Chunk]:
    """Split an Arrow IPC file or stream between record batches.

    Args, Raises: As for `chunk_parquet`.
    """

    def batches() -> Iterator[tuple[bytes, int, int, int]]:
        for number, batch in enumerate(arrow_batches(path)):
            data = batch.select(list(columns)).serialize()
            yield hashlib.sha256(data).digest(), data.size, number + 1, batch.num_rows

    yield from chunk_records(batches(), 0, schema_key)


def arrow_batches(path: Path, start: int = 0, stop: int | None = None) -> Iterator:
    """Yield the record batches `start` to `stop` of an Arrow IPC file or stream, with dictionaries
    decoded.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is neither.
    """
    import pyarrow as pa

    # Memory-mapped, so that skipped batches are not read.
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
            stop = reader.num_record_batches if stop is None else stop
            batches = (reader.get_batch(number) for number in range(start, stop))
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            batches = _slice(reader, start, stop)
        for batch in batches:
            yield _decode_dictionaries(batch)


def _slice(batches, start: int, stop: int | None) -> Iterator:
    for number, batch in enumerate(batches):
        if stop is not None and number >= stop:
            return
        if number >= start:
            yield batch


def _decode_dictionaries(batch):
    import pyarrow as pa

    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    decoded = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    return decoded.replace_schema_metadata(batch.schema.metadata)
