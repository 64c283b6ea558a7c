"""Reads rows from chunks of JSON lines."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator
from typing import Any

import orjson

from tasks.contracts.errors import BadData
from tasks.load.chat_rows import json_type
from tasks.load.chunk_content import chunk_bytes, decode_line
from tasks.load.encodings import encodings
from tasks.load.json_values import describe_json_error, parse_json
from tasks.load.read_settings import ReadJob


def read_jsonl(job: ReadJob) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield position, place for messages and record of each JSON line.

    Raises:
        BadData: A line is not a JSON object in the recipe's encoding.
    """
    for number, line in enumerate(chunk_bytes(job).split(b"\n")):  # only a line feed ends a line
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
    return parse_json(decode_line(line, job, position))
