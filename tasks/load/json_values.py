"""JSON with the exact values of the data.

orjson is fast, but reads integers beyond 64 bits as floats, and cannot write them. What an example
is trained on keeps its integers and the order of its keys; only what examples are compared by has
sorted keys.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

# Integers of 64 bits have at most 20 digits.
_MANY_DIGITS = re.compile(r"\d{19}")
_MANY_DIGITS_IN_BYTES = re.compile(rb"\d{19}")
_CONSTANT = re.compile(r"[+-]?(NaN|Infinity)")
_EXCERPT = 30
"""Characters that an error shows before and after its place."""


def parse_json(text: bytes | str) -> Any:
    """Parse JSON; integers of any size are exact.

    Raises:
        orjson.JSONDecodeError: It is not JSON.
    """
    value = orjson.loads(text)
    digits = _MANY_DIGITS if isinstance(text, str) else _MANY_DIGITS_IN_BYTES
    return json.loads(text) if digits.search(text) else value


def content_json(value: Any) -> str:
    """Return a value as JSON that reads as the same value: keys in order, integers exact.

    Raises:
        TypeError, ValueError: JSON cannot represent it.
    """
    return _dumps(value, 0)


def identity_json(value: Any) -> str:
    """Return a value as JSON to compare by: equal values give equal texts.

    Raises:
        TypeError, ValueError: JSON cannot represent it.
    """
    return _dumps(value, orjson.OPT_SORT_KEYS)


def _dumps(value: Any, option: int) -> str:
    try:
        return orjson.dumps(value, option=option).decode()
    except TypeError:
        # Integers beyond 64 bits, or what neither can write.
        text = json.dumps(
            value,
            ensure_ascii=False,
            separators=(",", ":"),
            allow_nan=False,
            sort_keys=bool(option & orjson.OPT_SORT_KEYS),
        )
        text.encode()  # Unpaired surrogates raise UnicodeEncodeError, a ValueError.
        return text


def describe_json_error(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """Describe why a text is not JSON.

    Returns:
        What was found, with the text around it, and what to do.
    """
    at = error.pos
    around = text[max(0, at - _EXCERPT) : at + _EXCERPT].strip()
    before = "…" if at > _EXCERPT else ""
    after = "…" if at + _EXCERPT < len(text) else ""
    where = f"at character {at + 1}: {before}{around}{after}"
    constant = _CONSTANT.match(text, max(0, at - 1)) or _CONSTANT.match(text, at)
    if constant:
        return f"{constant[0]}, which JSON does not have, {where}", "write null, or a number"
    return f"malformed JSON ({error.msg}) {where}", "correct the line"
