"""Reads rows from chunks of text files: JSON lines, CSV, folders of texts."""

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
from tasks.load.chat_rows import json_type
from tasks.load.encodings import bad_encoding, decode, encodings, not_text
from tasks.load.json_values import describe_json_error, parse_json
from tasks.load.read_settings import ReadJob, missing_column
from tasks.load.row_formats import CLASSIFICATION


def read_jsonl(job: ReadJob) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield position, place for messages and record of each JSON line.

    Raises:
        BadData: A line is not a JSON object in the recipe's encoding.
    """
    for number, line in enumerate(_chunk_bytes(job).split(b"\n")):  # only a line feed ends a line
        if not line.strip():
            continue
        position = job.chunk.first + number + 1
        where = f"{job.name}:{position}"
        try:
            record = _parse(line, job, position)
        except orjson.JSONDecodeError as error:
            found, fix = describe_json_error(error.doc, error)
            raise BadData(where, found, "one JSON object per line", fix) from None
        if not isinstance(record, dict):
            raise BadData(
                where,
                f"{json_type(record)}, not an object",
                "one JSON object per line",
                "correct the line",
            )
        yield number, where, record


def _parse(line: bytes, job: ReadJob, position: int) -> Any:
    if codecs.lookup(encodings(job.settings.encoding)[0]).name == "utf-8":
        # The fast path: orjson decodes UTF-8 itself.
        with contextlib.suppress(orjson.JSONDecodeError):
            return parse_json(line)
    return parse_json(_decode(line, job, position))


def _chunk_bytes(job: ReadJob) -> bytes:
    with open(job.path, "rb") as file:
        file.seek(job.chunk.start)
        return file.read(job.chunk.stop - job.chunk.start)


def _decode(data: bytes, job: ReadJob, line: int) -> str:
    try:
        return decode(data, job.settings.encoding)
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise bad_encoding(job.name, line, job.settings.encoding, error) from None


def _decode_chunk(job: ReadJob) -> str:
    data, first = _chunk_bytes(job), job.chunk.first + 1
    if len(encodings(job.settings.encoding)) == 1:
        return _decode(data, job, first)
    # Each line by itself: one line in the second encoding must not change how others are decoded.
    lines = data.splitlines(keepends=True)
    return "".join(_decode(line, job, first + number) for number, line in enumerate(lines))


def read_csv(job: ReadJob) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield position, place for messages and record of each CSV row.

    Raises:
        BadData: A row is malformed, or the header lacks a column.
    """
    header = _csv_header(job)
    text = _decode_chunk(job)
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=job.settings.delimiter, strict=True)
    line = 0
    while True:
        where = f"{job.name}:{job.chunk.first + line + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise BadData(
                where, f"malformed CSV ({error})", "fields quoted as in RFC 4180", "correct the row"
            ) from None
        if row is None:
            return
        if row:
            if len(row) != len(header):
                raise BadData(
                    where,
                    f"{len(row)} fields",
                    f"{len(header)}, as in the header",
                    f"quote fields that contain {job.settings.delimiter!r} or a line break",
                )
            yield line, where, dict(zip(header, row, strict=True))
        line = rows.line_num


def _csv_header(job: ReadJob) -> list[str]:
    start, stop = job.chunk.head
    with open(job.path, "rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    text = _decode(data, job, 1)
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=job.settings.delimiter), [])
    names = [name.strip() for name in header]
    duplicates = [name for name, times in Counter(names).items() if times > 1]
    if any(name in job.settings.columns for name in duplicates):
        raise BadData(
            f"{job.name}:1",
            f"two columns named {duplicates[0]!r}",
            "unique column names",
            "rename or remove one",
        )
    _check_header(job, names)
    return names


def _check_header(job: ReadJob, names: list[str]) -> None:
    where, settings = f"{job.name}:1", job.settings
    try:
        if settings.task != CLASSIFICATION:
            settings.row_formats.check_columns(names, where)
        for setting in ("text", "label") if settings.task == CLASSIFICATION else ():
            if getattr(settings, setting) not in names:
                raise missing_column(where, getattr(settings, setting), f"data.{setting}", names)
    except BadData as error:
        raise _wrong_delimiter(job, names) or error from None


def _wrong_delimiter(job: ReadJob, names: list[str]) -> BadData | None:
    likely = [mark for mark in ",;\t|" if len(names) == 1 and mark in names[0]]
    if not likely:
        return None
    return BadData(
        f"{job.name}:1",
        f"one column, {names[0]!r}",
        f"columns separated by {job.settings.delimiter!r} (data.delimiter)",
        f"set data.delimiter to {likely[0]!r}",
    )


def read_text_folders(job: ReadJob) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield position, place for messages and record of each text file.

    Raises:
        BadData: A file is not text in the recipe's encoding.
    """
    for number, (label, name, path) in enumerate(job.files):
        data = Path(path).read_bytes()
        if b"\0" in data:
            raise not_text(name)
        try:
            text = decode(data, job.settings.encoding)
        except UnicodeDecodeError as error:
            line = 1 + data.count(b"\n", 0, error.start)
            raise bad_encoding(name, line, job.settings.encoding, error) from None
        record = {
            job.settings.column_names.get("text", job.settings.text): text.removeprefix("\ufeff")
        }
        yield number, name, record | ({job.settings.label: label} if job.settings.label else {})
