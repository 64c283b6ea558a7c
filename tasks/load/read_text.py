"""Read rows from text chunks: JSON lines, CSV, folders of texts."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tasks.contracts.errors import BadData
from tasks.load.chat_rows import kind
from tasks.load.encodings import bad_encoding, decode, encodings, not_text
from tasks.load.read_settings import Job, missing_column
from tasks.load.row_formats import CLASSES

# Formats: each gives position, place for messages, and record by record


def read_jsonl(job: Job) -> Iterator[tuple[int, str, dict[str, Any]]]:
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


def read_csv(job: Job) -> Iterator[tuple[int, str, dict[str, Any]]]:
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


def read_folders(job: Job) -> Iterator[tuple[int, str, dict[str, Any]]]:
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
