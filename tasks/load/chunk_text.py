"""Splits text files (JSON lines, JSON arrays, CSV, plain text) into content-defined chunks."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson

from tasks.contracts.errors import BadData
from tasks.load.chunking import Chunk, chunk_records
from tasks.load.encodings import bad_encoding, check_encoding, not_text, too_long, without_bom
from tasks.load.json_values import content_json

BLOCK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


def chunk_lines(path: Path, name: str, max_bytes: int, encoding: str) -> Iterator[Chunk]:
    """Split a file of one record per line into chunks.

    Args:
        path: The file.
        name: Its name in messages.
        max_bytes: Maximum size of a record in bytes.
        encoding: `data.encoding`.

    Raises:
        BadData: A line is too long, or is not text.
        BadRecipe: The encoding is unknown, or is not ASCII-compatible.
    """
    check_encoding(encoding)
    with open(path, "rb") as file:
        start = _skip_bom(file)
        yield from chunk_records(_line_records(file, name, max_bytes, start), start)


def chunk_csv(path: Path, name: str, max_bytes: int, encoding: str) -> Iterator[Chunk]:
    """Split a CSV file into chunks. A line break inside quotes does not end a record.

    Args, Raises: As for `chunk_lines`.
    """
    check_encoding(encoding)
    with open(path, "rb") as file:
        start = _skip_bom(file)
        records = _quoted_records(file, name, max_bytes, start)
        header, _, stop, lines = next(records, (b"", 0, start, 0))
        for chunk in chunk_records(records, stop, header, (start, stop)):
            yield replace(chunk, first=chunk.first + lines)


def array_to_lines(path: Path, out: Path, name: str, max_bytes: int, encoding: str) -> Path:
    """Write the elements of a top-level JSON array as JSON lines, if the file holds one.

    Returns:
        `out`, or `path` itself if it does not hold an array.

    Raises:
        BadData: The array is malformed, or an element is too long.
    """
    with open(path, "rb") as probe:
        _skip_bom(probe)
        if probe.read(4096).lstrip()[:1] != b"[":
            return path
    check_encoding(encoding)
    with open(path, encoding=without_bom(encoding)) as file, open(out, "wb") as lines:
        try:
            for number, element in enumerate(_array_elements(file, name, max_bytes), 1):
                try:
                    lines.write(content_json(element).encode() + b"\n")
                except UnicodeEncodeError:
                    raise BadData(
                        f"{name}:{number}",
                        "half of a Unicode character (an unpaired surrogate)",
                        "valid Unicode",
                        "correct the row",
                    ) from None
        except UnicodeDecodeError as error:
            raise bad_encoding(name, 0, encoding, error) from None
    return out


def _skip_bom(file: io.BufferedIOBase) -> int:
    """Skip a byte order mark. Returns the number of bytes skipped."""
    start = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
    file.seek(start)
    return start


def _line_records(
    file: io.BufferedIOBase, name: str, max_bytes: int, stop: int
) -> Iterator[tuple[bytes, int, int, int]]:
    line = 0
    # One byte more than allowed detects a line that is too long without reading all of it.
    while record := file.readline(max_bytes + 1):
        line += 1
        if line == 1:
            _refuse_carriage_returns(record, name)
        if len(record) > max_bytes:
            raise too_long(f"{name}:{line}", max_bytes)
        if b"\0" in record:
            raise not_text(f"{name}:{line}")
        stop += len(record)
        yield record, len(record), stop, 1


def _refuse_carriage_returns(first: bytes, name: str) -> None:
    """Refuse a file whose lines end with CR: all of it would be its first line."""
    if first.endswith(b"\n") or b"\r" not in first.rstrip(b"\r"):
        return
    raise BadData(
        name,
        "lines that end with a carriage return (as in files saved as 'CSV (Macintosh)')",
        "lines that end with a line feed",
        f"convert the file: tr '\\r' '\\n' < {name} > NEW_FILE",
    )


def _quoted_records(
    file: io.BufferedIOBase, name: str, max_bytes: int, start: int
) -> Iterator[tuple[bytes, int, int, int]]:
    parts: list[bytes] = []
    quotes = size = line = 0
    stop = start
    for record, length, stop, _ in _line_records(file, name, max_bytes, start):
        line += 1
        quotes += record.count(b'"')
        if not parts and not quotes & 1:
            yield record, length, stop, 1
            continue
        parts.append(record)
        size += length
        if size > max_bytes:
            raise too_long(
                f"{name}:{line - len(parts) + 1}",
                max_bytes,
                ", probably because a closing quote is missing",
            )
        if not quotes & 1:
            yield b"".join(parts), size, stop, len(parts)
            parts, size = [], 0
    if parts:
        # An unclosed quote: parsing reports it.
        yield b"".join(parts), size, stop, len(parts)


def _array_elements(file: io.TextIOBase, name: str, max_bytes: int) -> Iterator[object]:
    window = _Window(file, name, max_bytes)
    window.skip("[")
    while window.next_differs("]"):
        if window.count:
            window.skip(",")
        yield window.element()
    window.skip("]")
    window.check_end()


class _Window:
    """The part of a JSON array in memory: one block, or one element if that is larger."""

    def __init__(self, file: io.TextIOBase, name: str, max_bytes: int) -> None:
        self.count = 0
        self._file, self._name, self._max_bytes = file, name, max_bytes
        self._text, self._at = "", 0
        self._decode = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode

    def next_differs(self, mark: str) -> bool:
        self._skip_space()
        return not self._text.startswith(mark, self._at)

    def skip(self, mark: str) -> None:
        if self.next_differs(mark):
            raise self._bad(f"{mark!r} is missing")
        self._at += 1

    def element(self) -> object:
        self._skip_space()
        while True:
            try:
                element, end = self._decode(self._text, self._at)
                # A number may continue in the next block.
                if end < len(self._text):
                    self.count, self._at = self.count + 1, end
                    return element
                problem = "it is cut off"
            except json.JSONDecodeError as error:
                problem = error.msg
            if len(self._text) - self._at > self._max_bytes:
                raise too_long(f"{self._name}:{self.count + 1}", self._max_bytes)
            if not self._more():
                raise self._bad(problem)

    def check_end(self) -> None:
        self._skip_space()
        if self._at < len(self._text):
            raise self._bad("text after its end")

    def _skip_space(self) -> None:
        self._at = _SPACE.match(self._text, self._at).end()
        while self._at == len(self._text) and self._more():
            self._at = _SPACE.match(self._text, self._at).end()

    def _more(self) -> bool:
        rest = self._text[self._at :]
        more = self._file.read(max(BLOCK_BYTES, len(rest)))
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
    raise json.JSONDecodeError(f"{value} is not valid JSON", value, 0)


def chunk_text_files(files: list[tuple[str, str, int]]) -> Iterator[Chunk]:
    """Group a sorted list of text files into chunks; each file is one record.

    Args:
        files: Label, content digest and size in bytes of each file.
    """

    def records() -> Iterator[tuple[bytes, int, int, int]]:
        for number, (label, digest, size) in enumerate(files):
            yield orjson.dumps([label, digest]), size, number + 1, 1

    yield from chunk_records(records(), 0)
