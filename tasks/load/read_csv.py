"""Reads rows from chunks of CSV files."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tasks.contracts.errors import BadData
from tasks.load.chunk_content import decode_chunk, decode_line
from tasks.load.read_settings import ReadJob, missing_column
from tasks.load.row_formats import CLASSIFICATION


def read_csv(job: ReadJob) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield position, place for messages and record of each CSV row.

    Raises:
        BadData: A row is malformed, or the header lacks a column.
    """
    header = _csv_header(job)
    text = decode_chunk(job)
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
    text = decode_line(data, job, 1)
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
