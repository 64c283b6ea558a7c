"""Runs the flow on recipes that tests make."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow as run_flow_now
from prefect.states import State

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


def start(name: str, **changes: Any) -> FlowRun:
    """A new run of a recipe's deployment, which `execute` executes, with changes such as
    `training__epochs=3`."""
    other = [f"{path.replace('__', '.')}={value}" for path, value in changes.items()]
    with get_client(sync_client=True) as client:
        made = client.read_deployment_by_name(f"retrain/{name}")
        parameters = {**made.parameters, "changes": {"other": other}}
        return client.create_flow_run_from_deployment(made.id, parameters=parameters)


def execute(run_id: Any) -> State:
    """Do what a worker's process does with a run of `retrain`; returns its state."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        with contextlib.suppress(Pause):
            run_flow_now(retrain, run, parameters=run.parameters, return_type="state")
        state = client.read_flow_run(run_id).state
    state.state_details.flow_run_id = run_id
    return state
