"""A pool's workers train, on another machine as far as one machine can play two: a worker with
another home and working folder, and a store on S3."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.sorting import FlowRunSort

from tasks.contracts.pool import PoolRun
from tasks.contracts.results import Finetuned
from tasks.release import deployment_log
from tasks.runtime import pool as pool_module
from tasks.runtime.pool_run import run_path
from tasks.storage.objects import S3Objects
from tasks.storage.store import open_store
from tests.faults.soundness import damaged_artifacts
from tests.flows.conftest import ROWS, Place, report_of
from tests.flows.running import run_flow, write_recipe
from tests.production.gpu_worker import Worker, kill
from tests.tasks.samples import easy_rows, write_jsonl
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Some seconds of training, with a checkpoint every second.
NAME = "pooled"
LONG = {"name": NAME, "training__epochs": 12, "training__checkpoint_minutes": 0.01}


@pytest.fixture
def worker(prefect_env, s3_env, tmp_path):
    started = Worker(tmp_path / "worker")
    yield started
    started.stop()


@pytest.fixture
def place(prefect_env, s3_env, tmp_path, tiny_base):
    place = Place(tmp_path / "place", tiny_base)
    write_jsonl(place.data, easy_rows(ROWS))
    return place


def pool_runs() -> list:
    """The runs of the pool's worker, the oldest first."""
    mine = FlowRunFilter(tags=FlowRunFilterTags(all_=[NAME]))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=mine, sort=FlowRunSort.START_TIME_ASC)


def noted_downloads(monkeypatch) -> list[str]:
    """What this process downloads from S3, as it happens."""
    noted, download = [], S3Objects.download

    def note(objects, path, file):
        noted.append(path)
        download(objects, path, file)

    monkeypatch.setattr(S3Objects, "download", note)
    return noted


class TestAPool:
    def test_trains_once_whatever_is_killed(self, worker, place, s3_env, tmp_path, monkeypatch):
        """Two runs want the same model; one of them, the worker's run and then the whole worker
        are killed while it trains."""
        # In place, undisturbed, in another store: what the pool is to produce, bit for bit.
        undisturbed = place.run(**LONG)
        assert undisturbed.name == "Released", undisturbed.message
        expected = place.log(NAME)[-1].release.digest

        monkeypatch.setattr(pool_module, "SILENT_SECONDS", 12.0)
        store = f"s3://{s3_env}/store"
        targets = str([str(tmp_path / "releases")])
        recipe = place.recipe(plan__pool="gpu", store=store, publish__targets=targets, **LONG)
        file = write_recipe(recipe, tmp_path)
        other = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "retrain", file],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        checkpoints = open_store(store).objects

        def disturb() -> None:
            # Its record alone comes before its files.
            kept = "artifacts/checkpoint/"
            wait_for(
                lambda: any(path.endswith("/manifest.json") for path in checkpoints.sizes(kept)),
                "a whole checkpoint of the first run",
            )
            other.kill()
            for run in worker.runs():
                kill(run)
            wait_for(lambda: len(pool_runs()) >= 3 and worker.trains(), "the second run to train")
            worker.lose()
            worker.start()

        # In this context, where the Prefect client knows its server.
        disturbing = threading.Thread(target=contextvars.copy_context().run, args=(disturb,))
        disturbing.start()
        downloads = noted_downloads(monkeypatch)
        state = run_flow(recipe, tmp_path)
        disturbing.join()
        fetched = list(downloads)
        assert state.name == "Released", state.message
        opened = open_store(store)
        entries = deployment_log.entries(opened, NAME, "production")
        (deployed,) = [entry for entry in entries if entry.kind == "deployed"]
        assert deployed.release.digest == expected
        (record,) = opened.objects.sizes("keys/finetune/")
        trained = Finetuned.model_validate(opened.read_json(record))
        assert "a checkpoint of run" in trained.resumed
        assert opened.objects.sizes("checkpoints/") == {}
        assert damaged_artifacts(opened) == []

        # One asked what the worker has; then the killed, the lost, and the last one.
        asked, *trainings = pool_runs()
        assert asked.state.is_completed()
        assert [run.state.is_crashed() for run in trainings] == [True, True, False]
        last = PoolRun.model_validate(opened.read_json(run_path(str(trainings[-1].id))))
        assert last.ended == "done" and last.error is None
        report = report_of(state)
        assert all(str(run.id) in report for run in trainings)

        # The base model is for the worker: this run never fetches its copy.
        assert opened.objects.sizes("artifacts/source/")
        assert fetched and not [path for path in fetched if "/source/" in path]

        # Whoever comes later finds it all.
        again = run_flow(recipe, tmp_path)
        assert again.name == "Up to date" and len(pool_runs()) == 4
