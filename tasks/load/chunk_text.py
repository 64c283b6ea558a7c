"""Cut text files (JSON lines, JSON arrays, CSV, plain text) into content-defined chunks."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import orjson

from tasks.contracts.errors import BadData
from tasks.load.chunking import Chunk, chunk_file
from tasks.load.encodings import bad_encoding, check_encoding, not_text, too_long, without_mark

BLOCK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


# Text formats


def cut_lines(path: Path, name: str, limit: int, encoding: str) -> Iterator[Chunk]:
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
        yield from chunk_file(_line_records(file, name, limit, start), start)


def cut_csv(path: Path, name: str, limit: int, encoding: str) -> Iterator[Chunk]:
    """Cut a CSV file: a line break ends a record only where the quotes before it are even.

    Args, Raises: As `cut_lines`.
    """
    check_encoding(encoding)
    with open(path, "rb") as file:
        start = _skip_mark(file)
        records = _quoted_records(file, name, limit, start)
        header, _, stop, lines = next(records, (b"", 0, start, 0))
        for piece in chunk_file(records, stop, header, (start, stop)):
            yield Chunk(
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
    with open(path, encoding=without_mark(encoding)) as file, open(out, "wb") as lines:
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
        more = self._file.read(max(BLOCK, len(rest)))
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


def cut_files(files: list[tuple[str, str, int]]) -> Iterator[Chunk]:
    """Cut a list of text files, each one record, into runs of files.

    Args:
        files: Label, content digest and size of each, sorted.
    """

    def records() -> Iterator[tuple[bytes, int, int, int]]:
        for number, (label, digest, size) in enumerate(files):
            yield orjson.dumps([label, digest]), size, number + 1, 1

    yield from chunk_file(records(), 0)
