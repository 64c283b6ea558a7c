"""A minimal recipe, and changes to it."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from flows.cli import apply_setting

MINIMAL = {"name": "news", "data": {"uri": "data.csv"}, "model": {"uri": "model"}}


def with_field(path: str, value: Any, recipe: dict[str, Any] = MINIMAL) -> dict[str, Any]:
    """A recipe as plain values, with one field set as on the command line."""
    data = copy.deepcopy(recipe)
    apply_setting(data, f"{path}={yaml.safe_dump(value)}")
    return data
