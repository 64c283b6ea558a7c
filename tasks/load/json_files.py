"""JSON files whose rows are inside an object, such as `{"version": 1, "data": [{…}, …]}`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from tasks.contracts.errors import BadData

MAX_BYTES = 256 << 20
"""Larger files are not parsed as a whole, only to improve a message."""


def refuse_wrapped_rows(path: Path, name: str, columns: Iterable[str]) -> None:
    """Refuse a file that is one JSON object around its rows.

    Args:
        path: The file.
        name: Its name in messages.
        columns: The columns that a row may have; an object with one of them is a row.

    Raises:
        BadData: The file is such an object.
    """
    wrapper = _single_object(path)
    if wrapper is None or set(columns) & wrapper.keys():
        return
    lists = [key for key, value in wrapper.items() if _is_rows(value)]
    if lists:
        raise BadData(
            name,
            f"one JSON object with the keys {', '.join(map(repr, wrapper))}; its rows are "
            f"inside {lists[0]!r}",
            "one JSON object per line, or an array of objects",
            f"write only the list in {lists[0]!r}: jq .{lists[0]} {name} > NEW_FILE.json",
        )


def _single_object(path: Path) -> dict[str, Any] | None:
    with open(path, "rb") as file:
        first = file.readline(MAX_BYTES)
        if first.lstrip()[:1] != b"{" or path.stat().st_size > MAX_BYTES:
            return None
        try:
            found = orjson.loads(first)
            # More lines follow: rows.
            return None if file.readline().strip() else found
        except orjson.JSONDecodeError:
            pass
        try:
            return orjson.loads(first + file.read())
        except orjson.JSONDecodeError:
            return None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
