"""Runs the flow on recipes that tests make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client

from flows.retrain import retrain
from tasks.contracts.recipe import Recipe
from tasks.contracts.recipe_changes import Changes


def changed(data: dict[str, Any], changes: dict[str, Any]) -> Recipe:
    """A recipe from plain values, with changes such as `gate__margin=0.1`."""
    other = tuple(f"{path.replace('__', '.')}={value}" for path, value in changes.items())
    Changes(other=other).apply(data)
    return Recipe.model_validate(data)


def write_recipe(recipe: Recipe, folder: Path) -> str:
    """Write a recipe's file; returns its path."""
    file = folder / f"{recipe.name}.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return str(file)


def run_flow(recipe: Recipe, folder: Path, refresh: str = "nothing"):
    """Run the flow on a recipe, from a file in a folder; returns its final state."""
    return retrain(write_recipe(recipe, folder), refresh=refresh, return_state=True)


def events_named(name: str, resource: str = "") -> list[dict]:
    """The events of a name that the Prefect server has, of one resource if it is named."""
    wanted = {"filter": {"event": {"name": [name]}, "order": "ASC"}, "limit": 50}
    if resource:
        wanted["filter"]["resource"] = {"id": [resource]}
    with get_client(sync_client=True) as client:
        return client.request("POST", "/events/filter", json=wanted).json()["events"]
