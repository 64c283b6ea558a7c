"""New data start one retraining, no more and no fewer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from huggingface_hub import HfApi
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.sorting import ArtifactSort
from prefect.deployments import run_deployment
from prefect.states import Completed, Crashed

from flows.cli import main
from flows.deployments import deploy, existing, watched
from flows.watch import watch
from tasks.watch import records
from tests.flows.conftest import ROWS
from tests.flows.running import write_recipe
from tests.tasks.samples import easy_rows, write_jsonl
from tests.waiting import wait_for


class Watched:
    """A watched recipe in a place of its own, and its deployment, which no worker serves."""

    def __init__(self, place, **changes) -> None:
        self.place, self.name = place, f"watched-{uuid4().hex[:8]}"
        settings = {"name": self.name, "watch__every_minutes": 30, "watch__quiet_minutes": 0}
        self.changes = settings | changes
        self.recipe = write_recipe(place.recipe(**self.changes), place.folder)
        deploy(self.recipe, store=place.store.uri)

    def look(self):
        """Let the watch look; returns the name of its last state, and its message."""
        state = watch(self.recipe, return_state=True)
        return state.name, state.message

    def runs(self) -> list:
        """The retrainings that it has started."""
        with get_client(sync_client=True) as client:
            mine = DeploymentFilter(id=DeploymentFilterId(any_=[existing(client, self.name).id]))
            return client.read_flow_runs(deployment_filter=mine)

    def card(self):
        with get_client(sync_client=True) as client:
            key = ArtifactFilterKey(any_=[f"data-{self.name}"])
            found = client.read_artifacts(
                artifact_filter=ArtifactFilter(key=key), sort=ArtifactSort.CREATED_DESC
            )
        return found[0]

    def retrain(self) -> str:
        """Do what the started run would do; returns the name of its last state."""
        done = self.place.run(**self.changes).name
        for run in self.runs():
            if not run.state.is_final():
                with get_client(sync_client=True) as client:
                    client.set_flow_run_state(run.id, Completed(name=done), force=True)
        return done

    def end_run(self, state) -> None:
        """End the newest retraining."""
        with get_client(sync_client=True) as client:
            open_runs = [run for run in self.runs() if not run.state.is_final()]
            client.set_flow_run_state(open_runs[0].id, state, force=True)

    def write(self, rows: int) -> None:
        write_jsonl(self.place.data, easy_rows(rows))


@pytest.fixture
def watched_place(place):
    return Watched(place)


class TestWatch:
    def test_starts_one_retraining_for_new_data_and_none_for_the_same(self, watched_place):
        found = watched_place
        assert found.look()[0] == "Retraining"
        assert found.look()[0] == "Retraining"
        assert len(found.runs()) == 1
        assert found.retrain() == "Released"
        name, message = found.look()
        assert (name, "has used these data: Released." in message) == ("Nothing new", True)
        assert len(found.runs()) == 1
        found.write(ROWS + 100)
        assert found.look()[0] == "Retraining"
        assert len(found.runs()) == 2
        card = found.card()
        assert card.description.startswith(f"{found.name} data · Retraining. +100 rows since")
        assert "| retrainings of these data | 1 of 3 |" in card.data

    def test_does_not_retrain_on_what_is_deployed_already(self, watched_place):
        # Its first look; the data were retrained on by hand before.
        assert watched_place.retrain() == "Released"
        (watched_place.place.folder / "store/watch" / watched_place.name / "verdict.json").unlink()
        assert watched_place.look()[0] == "Nothing new"
        assert watched_place.runs() == []

    def test_a_look_that_died_after_it_started_a_run_starts_no_second_one(self, watched_place):
        found, store = watched_place, watched_place.place.store
        found.look()
        state = records.read_state(store, found.name)
        changes = {"attempts": 0, "run_id": "", "run_name": ""}
        records.write_state(store, found.name, state.model_copy(update=changes))
        assert found.look()[0] == "Retraining"
        assert len(found.runs()) == 1

    def test_a_first_look_that_died_after_it_started_a_run_starts_no_second_one(
        self, watched_place, monkeypatch
    ):
        def start_and_die(*arguments, **options):
            run_deployment(*arguments, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("flows.watch.run_deployment", start_and_die)
            watch(watched_place.recipe)
        time.sleep(1.1)  # Moments have whole seconds.
        assert watched_place.look()[0] == "Retraining"
        assert len(watched_place.runs()) == 1

    def test_crashed_runs_are_tried_again_and_then_a_person_is_called_once(self, watched_place):
        found = watched_place
        for attempt in (1, 2, 3):
            assert found.look()[0] == "Retraining"
            assert len(found.runs()) == attempt
            found.end_run(Crashed())
        state = watch(found.recipe, return_state=True)
        assert (state.name, state.is_failed()) == ("Held", True)
        assert f"`burnish accept-data {found.name}`" in state.message
        state = watch(found.recipe, return_state=True)
        assert (state.name, state.is_completed()) == ("Held", True)
        assert len(found.runs()) == 3


class TestSources:
    def test_a_prefix_on_s3_is_watched(self, place, s3_env):
        rows = place.data.read_bytes().splitlines(keepends=True)
        s3 = boto3.client("s3")
        s3.put_object(Bucket=s3_env, Key="data/a.jsonl", Body=b"".join(rows[:500]))
        found = Watched(place, data__uri=f"s3://{s3_env}/data")
        assert found.look()[0] == "Retraining"
        assert found.retrain() == "Released"
        s3.put_object(Bucket=s3_env, Key="data/b.jsonl", Body=b"".join(rows[500:]))
        assert found.look()[0] == "Retraining"
        assert len(found.runs()) == 2

    def test_a_data_set_on_the_hub_is_watched(self, place, hub_env):
        hub = HfApi()
        hub.create_repo("ci/data", repo_type="dataset")
        rows = place.data.read_bytes().splitlines(keepends=True)

        def upload(part: list[bytes]) -> None:
            hub.upload_file(
                path_or_fileobj=b"".join(part),
                path_in_repo="data.jsonl",
                repo_id="ci/data",
                repo_type="dataset",
            )

        upload(rows[:500])
        found = Watched(place, data__uri="hf://ci/data")
        assert found.look()[0] == "Retraining"
        assert found.retrain() == "Released"
        assert found.look()[0] == "Nothing new"
        upload(rows)
        assert found.look()[0] == "Retraining"


class TestHeld:
    def held(self, found):
        state = watch(found.recipe, return_state=True)
        return state.name, state.type.value, state.message

    def test_missing_data_are_no_reason_to_retrain_and_are_told_once(self, watched_place):
        moved = watched_place.place.data.rename(watched_place.place.folder / "away")
        name, kind, message = self.held(watched_place)
        assert (name, kind) == ("Held", "FAILED")
        assert "no such path" in message and "what is deployed stays" in message
        assert self.held(watched_place)[:2] == ("Held", "COMPLETED")
        shutil.move(moved, watched_place.place.data)
        assert watched_place.look()[0] == "Retraining"

    def test_broken_data_are_named_by_row_and_not_trained_on(self, watched_place):
        with watched_place.place.data.open("a") as file:
            file.write("{half a row\n")
        name, kind, message = self.held(watched_place)
        assert (name, kind) == ("Held", "FAILED")
        assert f"data.jsonl:{ROWS + 1}" in message
        assert "Correct the data: the watch then goes on by itself." in message
        store = watched_place.place.store.uri
        assert main_exits(["accept-data", watched_place.name, "--store", store]) == 1
        assert watched_place.runs() == []

    def test_far_fewer_rows_wait_for_burnish_accept_data(self, watched_place, capsys):
        assert watched_place.retrain() == "Released"
        watched_place.write(ROWS - 200)
        name, kind, message = self.held(watched_place)
        assert (name, kind) == ("Held", "FAILED")
        assert "400 rows are left of 600: more than 20% are gone." in message
        store = watched_place.place.store.uri
        main_exits(["accept-data", watched_place.name, "--store", store])
        assert "accepted, though: 400 rows are left" in capsys.readouterr().out
        assert watched_place.look()[0] == "Retraining"
        assert len(watched_place.runs()) == 1

    def test_accepting_what_is_not_held_is_an_error(self, watched_place, capsys):
        store = watched_place.place.store.uri
        assert main_exits(["accept-data", watched_place.name, "--store", store]) == 1
        assert "none that are held back" in capsys.readouterr().err


class TestDeployment:
    def test_of_a_watched_recipe_has_a_watch_that_follows_the_recipe(self, watched_place):
        found = watched_place
        with get_client(sync_client=True) as client:
            first = client.read_deployment_by_name(f"watch/{found.name}")
            assert [each.schedule.interval.total_seconds() for each in first.schedules] == [1800]
            assert first.job_variables["env"]["BURNISH_STORE"] == found.place.store.uri
            assert first.concurrency_options.collision_strategy.value == "CANCEL_NEW"
            # A person has switched it off: it stays off, also when the recipe changes.
            client.update_deployment_schedule(first.id, first.schedules[0].id, active=False)
            wakes = self.wakes(client, found.name)
            assert [wake["enabled"] for wake in wakes] == [True]
            client.request("PATCH", f"/automations/{wakes[0]['id']}", json={"enabled": False})
            changes = found.changes | {"watch__every_minutes": 10}
            write_recipe(found.place.recipe(**changes), found.place.folder)
            deploy(found.recipe)
            deploy(found.recipe)
            second = client.read_deployment_by_name(f"watch/{found.name}")
            (schedule,) = second.schedules
            assert (schedule.schedule.interval.total_seconds(), schedule.active) == (600, False)
            assert [wake["enabled"] for wake in self.wakes(client, found.name)] == [False]

            changes["watch__every_minutes"] = 0
            write_recipe(found.place.recipe(**changes), found.place.folder)
            deploy(found.recipe)
            assert not watched(found.name)
            assert self.wakes(client, found.name) == []

    def wakes(self, client, name):
        wanted = {"automations": {"name": {"any_": [f"burnish: new data of {name}"]}}}
        return client.request("POST", "/automations/filter", json=wanted).json()


class TestDataChanged:
    def wakes(self, name):
        """The looks that no schedule has asked for."""
        with get_client(sync_client=True) as client:
            mine = client.read_deployment_by_name(f"watch/{name}")
            filter_ = DeploymentFilter(id=DeploymentFilterId(any_=[mine.id]))
            runs = client.read_flow_runs(deployment_filter=filter_)
        return [run for run in runs if "auto-scheduled" not in run.tags]

    def test_is_confirmed_by_the_server_and_wakes_the_watch(self, watched_place, capsys):
        assert main_exits(["data-changed", watched_place.name]) == 0
        assert "the server has the event" in capsys.readouterr().out
        wait_for(lambda: len(self.wakes(watched_place.name)) == 1, "a run of the watch")

    def test_is_the_same_by_the_command_that_is_documented_for_webhooks(self, watched_place):
        page = Path("infra/webhooks.md").read_text()
        command = next(
            block for block in re.findall(r"```sh\n(.*?)```", page, re.S) if "curl" in block
        )
        command = command.replace("support-tickets", watched_place.name)
        environment = {**os.environ, "PREFECT_API_AUTH_STRING": "admin:password"}
        subprocess.run(["bash", "-c", command], env=environment, check=True)
        wait_for(lambda: len(self.wakes(watched_place.name)) == 1, "a run of the watch")

    def test_of_a_recipe_that_is_not_watched_is_an_error(self, prefect_env, capsys):
        assert main_exits(["data-changed", "nobody"]) == 1
        assert "set watch.every_minutes in the recipe" in capsys.readouterr().err


def main_exits(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as ended:
        return ended.code or 0
    return 0
