"""Cut Parquet and Arrow files into chunks of whole row groups."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

from tasks.load.chunk_text import BLOCK
from tasks.load.chunking import Chunk, chunk_file

# Columnar formats and text folders


def cut_parquet(path: Path, columns: tuple[str, ...], salt: bytes) -> Iterator[Chunk]:
    """Cut a Parquet file between row groups, by the bytes of the columns that are read.

    Args:
        path: The file.
        columns: The columns that are read.
        salt: What else parsing depends on: column types, label names.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is no Parquet file.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table, open(path, "rb") as raw:

        def groups() -> Iterator[tuple[bytes, int, int, int]]:
            for number in range(table.metadata.num_row_groups):
                group = table.metadata.row_group(number)
                digest, size = _group_digest(group, columns, raw)
                yield digest, size, number + 1, group.num_rows

        yield from chunk_file(groups(), 0, salt)


def _group_digest(group, columns: tuple[str, ...], raw: io.BufferedReader) -> tuple[bytes, int]:
    hashed, size = hashlib.sha256(b"%d" % group.num_rows), 0
    for number in range(group.num_columns):
        chunk = group.column(number)
        # A column may have parts (a struct's), and a dot in its own name.
        if not f"{chunk.path_in_schema}.".startswith(tuple(f"{name}." for name in columns)):
            continue
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        raw.seek(min(start, chunk.data_page_offset))
        left = chunk.total_compressed_size
        size += left
        hashed.update(chunk.path_in_schema.encode())
        while left:
            block = raw.read(min(left, BLOCK))
            if not block:
                raise OSError("the file ends within a row group")
            hashed.update(block)
            left -= len(block)
    return hashed.digest(), size


def cut_arrow(path: Path, columns: tuple[str, ...], salt: bytes) -> Iterator[Chunk]:
    """Cut an Arrow IPC file or stream between record batches.

    Args, Raises: As `cut_parquet`.
    """

    def batches() -> Iterator[tuple[bytes, int, int, int]]:
        for number, batch in enumerate(arrow_batches(path)):
            data = batch.select(list(columns)).serialize()
            yield hashlib.sha256(data).digest(), data.size, number + 1, batch.num_rows

    yield from chunk_file(batches(), 0, salt)


def arrow_batches(path: Path, start: int = 0, stop: int | None = None) -> Iterator:
    """The record batches of an Arrow IPC file or stream, dictionaries decoded.

    Raises:
        OSError, pyarrow.ArrowInvalid: It is neither.
    """
    import pyarrow as pa

    # Mapped: batches that are skipped are not read.
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
            stop = reader.num_record_batches if stop is None else stop
            found = (reader.get_batch(number) for number in range(start, stop))
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            found = _slice(reader, start, stop)
        for batch in found:
            yield _plain(batch)


def _slice(batches, start: int, stop: int | None) -> Iterator:
    for number, batch in enumerate(batches):
        if stop is not None and number >= stop:
            return
        if number >= start:
            yield batch


def _plain(batch):
    import pyarrow as pa

    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    plain = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    return plain.replace_schema_metadata(batch.schema.metadata)
