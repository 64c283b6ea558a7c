"""Cuts data files into pieces whose boundaries depend on their content alone.

A piece ends after a record whose checksum falls below a threshold, as in content-defined chunking
(Muthitacharoen, Chen, Mazières 2001, LBFS), but on whole records. So a row that is inserted,
changed or appended changes the piece it lies in and no other, and everything that was made of the
other pieces is used again. Cutting scans bytes; it parses nothing, and holds one record at a time.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

TARGET = 512 * 1024
"""Expected bytes of a piece."""
LONGEST = 4 * TARGET
"""A piece ends when it has grown so far, whatever its content."""


@dataclass(frozen=True)
class Chunk:
    """A run of whole records of one file.

    Attributes:
        digest: SHA-256 of the content that parsing will see.
        first: Position of its first record in the file: a line in text formats, a row in
            columnar ones, both from 0; for text folders a place in the list of files.
        start, stop: Where it lies: bytes in text formats, row groups in Parquet, record batches in
            Arrow, places in the list of files for text folders.
        head: Where the header lies, in bytes, for formats that have one.
        size: Its bytes.
    """

    digest: str
    first: int
    start: int
    stop: int
    size: int
    head: tuple[int, int] = (0, 0)


class _Cutter:
    """Collects records and says where a piece ends."""

    def __init__(self, head: bytes = b"", target: int = TARGET) -> None:
        self._head, self._target = head, target
        self._begin()

    def _begin(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256(self._head)

    def add(self, record: bytes, size: int | None = None) -> bool:
        """Take a record; True if the piece ends after it.

        Args:
            record: Its bytes, or a digest that stands for them.
            size: Its bytes, where `record` only stands for them.
        """
        length = len(record) if size is None else size
        self.size += length
        self._hash.update(record)
        # An expected size of `target`: each byte carries the chance 1/target to end a piece.
        ends = zlib.crc32(record) * self._target < length << 32
        return ends or self.size >= 4 * self._target

    def take(self) -> tuple[str, int]:
        """The piece's digest and size; the next piece begins."""
        done = self._hash.hexdigest(), self.size
        self._begin()
        return done


def chunk_file(
    records: Iterator[tuple[bytes, int, int, int]],
    start: int,
    head: bytes = b"",
    head_span: tuple[int, int] = (0, 0),
    target: int = TARGET,
) -> Iterator[Chunk]:
    """Cut a stream of records into pieces.

    Args:
        records: For each its bytes (or a digest), size, end place, and number of positions.
        start: The place where the first one begins.
        head: A header that belongs to every piece.
        head_span: Where that lies.
        target: Expected bytes of a piece.
    """
    cutter = _Cutter(head, target)
    position = first = 0
    stop = start
    for record, size, stop, positions in records:
        position += positions
        if cutter.add(record, size):
            yield Chunk(*_named(cutter, first, start, stop), head_span)
            first, start = position, stop
    if cutter.size:
        yield Chunk(*_named(cutter, first, start, stop), head_span)


def _named(cutter: _Cutter, first: int, start: int, stop: int) -> tuple[str, int, int, int, int]:
    digest, size = cutter.take()
    return digest, first, start, stop, size
