"""A minimal recipe, and changes to it."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from tasks.contracts.recipe_changes import Changes

MINIMAL = {"name": "news", "data": {"uri": "data.csv"}, "model": {"uri": "model"}}


def with_field(path: str, value: Any, recipe: dict[str, Any] = MINIMAL) -> dict[str, Any]:
    """A recipe as plain values, with one field set as on the command line."""
    data = copy.deepcopy(recipe)
    Changes(other=(f"{path}={yaml.safe_dump(value)}",)).apply(data)
    return data
