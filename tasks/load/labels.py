"""Labels: how a value becomes one, which of them differ only in spelling, and which are numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.contracts.errors import BadData, EmptyValue
from tasks.load.chat_rows import json_type
from tasks.load.splits import normal_form

_WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def label_of(value: Any, name: str, where: str) -> str:
    """Return a value of the label column as a label.

    Args:
        value: A string, an integer, a boolean or a number.
        name: The column's name, for messages.
        where: File and row.

    Raises:
        EmptyValue: The value is empty.
        BadData: The value is of another type.
    """
    if isinstance(value, str):
        label = value.strip()
        if label:
            return label
    elif isinstance(value, bool):
        return "true" if value else "false"
    elif isinstance(value, int):
        return str(value)
    elif isinstance(value, float) and value == value:
        # Tools turn integers into floats in columns with missing values.
        return str(int(value)) if value.is_integer() else repr(value)
    if value is None or value != value or isinstance(value, str):
        raise EmptyValue(where, f"no label in {name!r}", "a label", "fill in or remove the row")
    raise BadData(
        where,
        f"{json_type(value)} as label in {name!r}",
        "a string, a number or a boolean",
        "set data.label to the column of classes",
    )


def normal_label(label: str) -> str:
    """Return a label's normal form: NFKC, case-folded, whitespace collapsed, `1.0` as `1`."""
    label = normal_form(label)
    whole = _WHOLE_NUMBER.fullmatch(label)
    return str(int(whole[1])) if whole else label


def renamed_label(label: str, label_map: Mapping[str, str], normalize: bool) -> str:
    """Return the label that the recipe gives to one of the data.

    Args:
        label: As in the data.
        label_map: `data.label_map`; if labels are normalized, its keys are too.
        normalize: `data.normalize_labels`.
    """
    if normalize:
        label = normal_label(label)
        label_map = {normal_label(name): new for name, new in label_map.items()}
    return label_map.get(label, label)


def spellings(labels: Iterable[str]) -> list[list[str]]:
    """Return the groups of labels that have the same normal form, sorted."""
    groups: dict[str, list[str]] = {}
    for label in sorted(labels):
        groups.setdefault(normal_label(label), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def is_fraction(label: str) -> bool:
    """Whether a label is a number that is not whole, such as `-0.25`."""
    return bool(_NUMBER.fullmatch(label)) and not float(label).is_integer()
