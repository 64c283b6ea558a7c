"""A run that was released once; tests work on copies of its store."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)

from tasks.contracts.recipe import Recipe
from tasks.release import deployment_log
from tasks.runtime.run_program import program_name
from tasks.storage.objects import open_objects
from tasks.storage.store import Store
from tests.flows.language_place import LanguagePlace, questions
from tests.flows.running import changed, run_flow
from tests.tasks.samples import easy_rows, write_jsonl

ROWS = 600


@dataclass
class Place:
    """A recipe on tiny parts, its data and its store, all in one folder."""

    folder: Path
    base: Path

    @property
    def data(self) -> Path:
        return self.folder / "data.jsonl"

    @property
    def store(self) -> Store:
        return Store(open_objects(str(self.folder / "store")))

    def recipe(self, **changes: Any) -> Recipe:
        """The recipe, with changes such as `gate__margin=0.1`."""
        data = {
            "name": "tiny",
            "data": {"uri": str(self.data)},
            "model": {"uri": str(self.base)},
            "lora": {"r": 4},
            "training": {"epochs": 2, "max_length": 32, "learning_rate": 0.01, "batch_size": 16},
            "gate": {
                "first_run": "floors",
                "floors": {"accuracy": 0.2},
                "margin": 0.5,
                "min_examples": 20,
                "slice_veto": False,
            },
            "publish": {"targets": [str(self.folder / "releases")]},
            "store": str(self.folder / "store"),
        }
        return changed(data, changes)

    def run(self, refresh: str = "nothing", **changes: Any):
        """Run the flow; returns its final state."""
        return run_flow(self.recipe(**changes), self.folder, refresh)

    def log(self, name: str = "tiny") -> list:
        return deployment_log.entries(self.store, name, "production")


@pytest.fixture(scope="session")
def first_release(tmp_path_factory, tiny_base, prefect_session):
    """A place where a first run was released."""
    place = Place(tmp_path_factory.mktemp("first"), tiny_base)
    write_jsonl(place.data, easy_rows(ROWS))
    state = place.run()
    assert state.name == "Released", state.message
    return place


@pytest.fixture
def place(first_release, tmp_path, prefect_env):
    """A copy of the place where a first run was released."""
    shutil.copytree(first_release.folder, tmp_path / "place")
    return Place(tmp_path / "place", first_release.base)


@pytest.fixture
def chat(tmp_path, tiny_lm, prefect_env):
    columns = {"prompt": "q", "completion": "a"}
    return LanguagePlace(tmp_path, tiny_lm, "instruction", questions(120), columns=columns)


@pytest.fixture
def empty_place(tmp_path, tiny_base, prefect_env):
    """A place with data, where nothing was run yet."""
    place = Place(tmp_path / "place", tiny_base)
    write_jsonl(place.data, easy_rows(ROWS))
    return place


def report_of(state) -> str:
    """The report on the page of a run."""
    return reports_of(state.state_details.flow_run_id)[0]


def reports_of(run_id) -> list[str]:
    """All reports on the page of a run, which has one for each try."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return [item.data for item in found if (item.key or "").startswith("report-")]


def task_states(state) -> dict[str, str]:
    """The final state's name of each task of a run."""
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])), limit=200
        )
    return {run.name: run.state.name for run in runs}


def training_programs(pid: int) -> list[psutil.Process]:
    """The training programs below a process, by the log that they write: a forked program has the
    command line of its fork server. The run that starts one has the log open for a moment, too."""
    log = f"/{program_name('tasks.finetune.program')}.log"
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            program = any(part.startswith("tasks.") for part in child.cmdline())
            if program and any(file.path.endswith(log) for file in child.open_files()):
                found.append(child)
    return found
