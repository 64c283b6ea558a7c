"""Content-defined chunking: splits data files at boundaries that depend on their content alone.

A chunk ends after a record whose checksum falls below a threshold, as in Muthitacharoen, Chen,
Mazières 2001 (LBFS), but at record boundaries. A row that is inserted, changed or appended
therefore changes the chunk around it and leaves the others as they were, so what was computed from
them is reused. Chunking scans bytes; it parses nothing and holds one record in memory at a time.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

TARGET_CHUNK_BYTES = 512 * 1024
"""Expected size of a chunk."""
MAX_CHUNK_BYTES = 4 * TARGET_CHUNK_BYTES
"""A chunk ends at this size, whatever its content."""


@dataclass(frozen=True)
class Chunk:
    """A run of consecutive whole records of one file.

    Attributes:
        digest: SHA-256 of the content that will be parsed.
        first: Index of its first record in the file, from 0: a line in text formats, a row in
            columnar formats, an index into the list of files for text folders.
        start, stop: Its range in the file: bytes in text formats, row groups in Parquet, record
            batches in Arrow, indices into the list of files for text folders.
        head: Byte range of the header, for formats that have one.
        size: Bytes.
    """

    digest: str
    first: int
    start: int
    stop: int
    size: int
    head: tuple[int, int] = (0, 0)


class _ChunkBuilder:
    """Collects records and decides where a chunk ends."""

    def __init__(self, head: bytes, target: int) -> None:
        self._head, self._target = head, target
        self._reset()

    def _reset(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256(self._head)

    def add(self, record: bytes, size: int) -> bool:
        """Add a record; True if the chunk ends after it.

        Args:
            record: Its bytes, or a digest of them.
            size: Number of bytes of the record itself.
        """
        self.size += size
        self._hash.update(record)
        # Each byte ends the chunk with probability 1/target, so the expected size is `target`.
        ends = zlib.crc32(record) * self._target < size << 32
        return ends or self.size >= 4 * self._target

    def finish(self) -> tuple[str, int]:
        """Return the digest and size of the chunk, and start the next one."""
        done = self._hash.hexdigest(), self.size
        self._reset()
        return done


def chunk_records(
    records: Iterator[tuple[bytes, int, int, int]],
    start: int,
    head: bytes = b"",
    head_span: tuple[int, int] = (0, 0),
    target: int | None = None,
) -> Iterator[Chunk]:
    """Group a stream of records into chunks.

    Args:
        records: For each record: its bytes (or a digest of them), its size in bytes, where it ends,
            and the number of positions it takes (the lines of a CSV record).
        start: Where the first record starts.
        head: A header that is part of every chunk's content.
        head_span: Byte range of the header.
        target: Expected chunk size in bytes; None: `TARGET_CHUNK_BYTES`.
    """
    builder = _ChunkBuilder(head, target or TARGET_CHUNK_BYTES)
    position = first = 0
    stop = start
    for record, size, stop, positions in records:
        position += positions
        if builder.add(record, size):
            yield _build_chunk(builder, first, start, stop, head_span)
            first, start = position, stop
    if builder.size:
        yield _build_chunk(builder, first, start, stop, head_span)


def _build_chunk(
    builder: _ChunkBuilder, first: int, start: int, stop: int, head: tuple[int, int]
) -> Chunk:
    digest, size = builder.finish()
    return Chunk(digest, first, start, stop, size, head)
