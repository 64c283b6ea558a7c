"""Cuts data files into pieces whose boundaries depend on their content alone.

A piece ends after a record whose checksum falls below a threshold, as in content-defined chunking
(Muthitacharoen, Chen, Mazières 2001, LBFS), but on whole records. So a row that is inserted,
changed or appended changes the piece it lies in and no other, and everything that was made of the
other pieces is used again. Cutting scans bytes; it parses nothing, and holds one record at a time.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from tasks.errors import BadData, BadRecipe

TARGET = 512 * 1024
"""Expected bytes of a piece."""
LONGEST = 4 * TARGET
"""A piece ends when it has grown so far, whatever its content."""

_BLOCK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Piece:
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


def cut(
    records: Iterator[tuple[bytes, int, int, int]],
    start: int,
    head: bytes = b"",
    head_span: tuple[int, int] = (0, 0),
    target: int = TARGET,
) -> Iterator[Piece]:
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
            yield Piece(*_named(cutter, first, start, stop), head_span)
            first, start = position, stop
    if cutter.size:
        yield Piece(*_named(cutter, first, start, stop), head_span)


def _named(cutter: _Cutter, first: int, start: int, stop: int) -> tuple[str, int, int, int, int]:
    digest, size = cutter.take()
    return digest, first, start, stop, size


# Text formats


def cut_lines(path: Path, name: str, limit: int, encoding: str) -> Iterator[Piece]:
    """Cut a file of one record per line.

    Args:
        path: The file.
        name: Its name in messages.
        limit: Most bytes of a record.
        encoding: Of its text.

    Raises:
        BadData: A line is too long, or is no text.
        BadRecipe: The encoding cannot be cut into lines.
    """
    check_encoding(encoding)
    with open(path, "rb") as file:
        start = _skip_mark(file)
        yield from cut(_line_records(file, name, limit, start), start)


def cut_csv(path: Path, name: str, limit: int, encoding: str) -> Iterator[Piece]:
    """Cut a CSV file: a line break ends a record only where the quotes before it are even.

    Args, Raises: As `cut_lines`.
    """
    check_encoding(encoding)
    with open(path, "rb") as file:
        start = _skip_mark(file)
        records = _quoted_records(file, name, limit, start)
        header, _, stop, lines = next(records, (b"", 0, start, 0))
        for piece in cut(records, stop, header, (start, stop)):
            yield Piece(
                piece.digest,
                piece.first + lines,
                piece.start,
                piece.stop,
                piece.size,
                piece.head,
            )


def array_to_lines(path: Path, out: Path, name: str, limit: int, encoding: str) -> Path:
    """Write the elements of a top-level JSON array as lines, if the file holds one.

    Returns:
        `out`, or `path` itself where it is no array.

    Raises:
        BadData: The array is malformed, or an element is too long.
    """
    with open(path, "rb") as probe:
        _skip_mark(probe)
        if probe.read(4096).lstrip()[:1] != b"[":
            return path
    check_encoding(encoding)
    with open(path, encoding=_without_mark(encoding)) as file, open(out, "wb") as lines:
        try:
            for element in _array_elements(file, name, limit):
                lines.write(orjson.dumps(element) + b"\n")
        except UnicodeDecodeError as error:
            raise bad_encoding(name, 0, encoding, error) from None
        except TypeError as error:
            raise BadData(
                name, f"a value that JSON cannot hold ({error})", "valid Unicode", "correct it"
            ) from None
    return out


def bad_encoding(name: str, position: int, encoding: str, error: UnicodeDecodeError) -> BadData:
    """The error for text that is not in the encoding that the recipe names.

    Args:
        name: The file.
        position: Line, from 1; 0 where it is not known.
        encoding: As the recipe says.
        error: What decoding said.
    """
    byte = error.object[error.start]
    return BadData(
        f"{name}:{position}" if position else name,
        f"byte 0x{byte:02x} ({error.reason}) in text that should be {encoding}",
        f"text in {encoding} (data.encoding)",
        "set data.encoding to what the file is in, such as cp1252; where files differ, to a list "
        "that is tried in order, such as 'utf-8, cp1252'",
    )


def too_long(where: str, limit: int, hint: str = "") -> BadData:
    """The error for a record that is larger than `data.max_record_mb`."""
    return BadData(
        where,
        f"a record of more than {limit / 1e6:g} MB{hint}",
        "records below data.max_record_mb",
        "check that the file has one record per line, or raise data.max_record_mb",
    )


def not_text(where: str) -> BadData:
    """The error for binary content in a text format."""
    return BadData(
        where,
        "binary content (a NUL byte)",
        "a text file",
        "check data.format; convert UTF-16 to UTF-8, and decompress what is compressed",
    )


def encodings(said: str) -> list[str]:
    """The encodings that `data.encoding` names: one, or several to be tried in order."""
    return [each.strip() for each in said.split(",") if each.strip()]


def decode(data: bytes, said: str) -> str:
    """Text of bytes, in the first of the named encodings that fits.

    Raises:
        UnicodeDecodeError: None fits; it is about the first.
    """
    problem = None
    for encoding in encodings(said):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            problem = problem or error
    raise problem


def check_encoding(said: str) -> None:
    """Raises BadRecipe: An encoding is unknown, or cannot be cut into lines."""
    for encoding in encodings(said) or [said]:
        try:
            same = '\n\r,;\t"{}'.encode(encoding) == b'\n\r,;\t"{}'
        except LookupError:
            raise BadRecipe(
                "data.encoding", repr(said), "encodings that Python knows", "utf-8, cp1252…"
            ) from None
        if not same:
            raise BadRecipe(
                "data.encoding",
                repr(said),
                "an encoding in which a line break is one byte",
                "convert the files to UTF-8",
            )


def _without_mark(said: str) -> str:
    first = encodings(said)[0]
    return "utf-8-sig" if codecs.lookup(first).name == "utf-8" else first


def _skip_mark(file: io.BufferedIOBase) -> int:
    """Skip a byte order mark. Returns the number of bytes skipped."""
    start = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
    file.seek(start)
    return start


def _line_records(
    file: io.BufferedIOBase, name: str, limit: int, stop: int
) -> Iterator[tuple[bytes, int, int, int]]:
    line = 0
    # One byte more than allowed: so a longer line is known without being read.
    while record := file.readline(limit + 1):
        line += 1
        if len(record) > limit:
            raise too_long(f"{name}:{line}", limit)
        if b"\0" in record:
            raise not_text(f"{name}:{line}")
        stop += len(record)
        yield record, len(record), stop, 1


def _quoted_records(
    file: io.BufferedIOBase, name: str, limit: int, start: int
) -> Iterator[tuple[bytes, int, int, int]]:
    parts: list[bytes] = []
    quotes = size = line = 0
    stop = start
    for record, length, stop, _ in _line_records(file, name, limit, start):
        line += 1
        quotes += record.count(b'"')
        if not parts and not quotes & 1:
            yield record, length, stop, 1
            continue
        parts.append(record)
        size += length
        if size > limit:
            raise too_long(
                f"{name}:{line - len(parts) + 1}", limit, ", probably for want of a closing quote"
            )
        if not quotes & 1:
            yield b"".join(parts), size, stop, len(parts)
            parts, size = [], 0
    if parts:
        # Parsing will say what is wrong with it.
        yield b"".join(parts), size, stop, len(parts)


def _array_elements(file: io.TextIOBase, name: str, limit: int) -> Iterator[object]:
    window = _Window(file, name, limit)
    window.skip("[")
    while window.next_is_not("]"):
        if window.count:
            window.skip(",")
        yield window.element()
    window.skip("]")
    window.check_end()


class _Window:
    """The part of a JSON array that is in memory: a block, or the element that is larger."""

    def __init__(self, file: io.TextIOBase, name: str, limit: int) -> None:
        self.count = 0
        self._file, self._name, self._limit = file, name, limit
        self._text, self._at = "", 0
        self._decode = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode

    def next_is_not(self, mark: str) -> bool:
        self._skip_space()
        return not self._text.startswith(mark, self._at)

    def skip(self, mark: str) -> None:
        if self.next_is_not(mark):
            raise self._bad(f"{mark!r} is missing")
        self._at += 1

    def element(self) -> object:
        self._skip_space()
        while True:
            try:
                element, end = self._decode(self._text, self._at)
                # A number could go on in the next block.
                if end < len(self._text):
                    self.count, self._at = self.count + 1, end
                    return element
                problem = "its end is missing"
            except json.JSONDecodeError as error:
                problem = error.msg
            if len(self._text) - self._at > self._limit:
                raise too_long(f"{self._name}:{self.count + 1}", self._limit)
            if not self._more():
                raise self._bad(problem)

    def check_end(self) -> None:
        self._skip_space()
        if self._at < len(self._text):
            raise self._bad("there is more after its end")

    def _skip_space(self) -> None:
        self._at = _SPACE.match(self._text, self._at).end()
        while self._at == len(self._text) and self._more():
            self._at = _SPACE.match(self._text, self._at).end()

    def _more(self) -> bool:
        rest = self._text[self._at :]
        more = self._file.read(max(_BLOCK, len(rest)))
        self._text, self._at = rest + more, 0
        return bool(more)

    def _bad(self, problem: str) -> BadData:
        return BadData(
            f"{self._name}:{self.count + 1}",
            f"a malformed JSON array ({problem})",
            "one array of objects, or one object per line",
            "correct the file; one object per line (.jsonl) is the safer format",
        )


def _refuse_constant(value: str) -> None:
    raise json.JSONDecodeError(f"{value} is not JSON", value, 0)


# Columnar formats and text folders


def cut_parquet(path: Path, columns: tuple[str, ...], salt: bytes) -> Iterator[Piece]:
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

        yield from cut(groups(), 0, salt)


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
            block = raw.read(min(left, _BLOCK))
            if not block:
                raise OSError("the file ends within a row group")
            hashed.update(block)
            left -= len(block)
    return hashed.digest(), size


def cut_arrow(path: Path, columns: tuple[str, ...], salt: bytes) -> Iterator[Piece]:
    """Cut an Arrow IPC file or stream between record batches.

    Args, Raises: As `cut_parquet`.
    """

    def batches() -> Iterator[tuple[bytes, int, int, int]]:
        for number, batch in enumerate(arrow_batches(path)):
            data = batch.select(list(columns)).serialize()
            yield hashlib.sha256(data).digest(), data.size, number + 1, batch.num_rows

    yield from cut(batches(), 0, salt)


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


def cut_files(files: list[tuple[str, str, int]]) -> Iterator[Piece]:
    """Cut a list of text files, each one record, into runs of files.

    Args:
        files: Label, content digest and size of each, sorted.
    """

    def records() -> Iterator[tuple[bytes, int, int, int]]:
        for number, (label, digest, size) in enumerate(files):
            yield orjson.dumps([label, digest]), size, number + 1, 1

    yield from cut(records(), 0)
