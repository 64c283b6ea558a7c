"""`make server` starts a server, a worker and the deployments, and its runs release models."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Cancelling

from flows.prefect_server import running_server
from tests.flows.conftest import Place, report_of, reports_of, training_programs
from tests.flows.running import write_recipe
from tests.tasks.samples import easy_rows, write_jsonl
from tests.waiting import wait_for

# A server, a worker and a training may each take minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]
LIMIT_SECONDS = 1200


@dataclass
class Served:
    """A running `python -m infra.serve`. Its output goes to a file: it would block on a pipe that
    nobody reads."""

    process: subprocess.Popen
    output: Path
    home: Path

    def wait_for(self, event: Any, what: str) -> Any:
        """As `wait_for`; fails with the output as soon as the server ends."""

        def checked() -> Any:
            assert self.process.poll() is None, self.output.read_text()[-5000:]
            return event()

        return wait_for(checked, what, LIMIT_SECONDS)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`python -m infra.serve` on a free port."""
    home = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "BURNISH_PORT": str(port),
        "BURNISH_STORE": str(home / "store"),
        "PREFECT_HOME": str(home / "prefect"),
    }
    environment.pop("PREFECT_API_URL", None)
    with open(home / "output", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.serve"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
            server = Served(process, home / "output", home / "prefect")
            server.wait_for(worker_is_ready, "a worker that is ready")
            yield server
    finally:
        process.kill()


def worker_is_ready() -> bool:
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:
        pool = client.read_work_pool("cpu")
        return bool(pool.status and pool.status.value == "READY")
    return False


def start_run(place: Place, **changes: Any) -> Any:
    """Start a run of the deployment; returns its id."""
    write_jsonl(place.data, easy_rows(600))
    recipe = write_recipe(place.recipe(**changes), place.folder)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("retrain/news")
        run = client.create_flow_run_from_deployment(deployment.id, parameters={"recipe": recipe})
    return run.id


def state_of(run_id: Any) -> Any:
    """The state of a run, with the run's id."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
    state.state_details.flow_run_id = run_id
    return state


class TestServer:
    def test_creates_the_deployment_with_its_schedule_off(self, served):
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("retrain/news")
        assert [schedule.active for schedule in deployment.schedules] == [False]
        assert deployment.parameters["recipe"] == "news"
        assert set(deployment.parameter_openapi_schema["definitions"]) == {"Changes"}
        assert deployment.tags == ["retrain", "news"]
        # Commands on this machine find it.
        assert running_server(served.home) == PREFECT_API_URL.value()

    def test_a_run_of_the_deployment_releases_a_model_and_has_a_report(
        self, served, tmp_path, tiny_base
    ):
        place = Place(tmp_path, tiny_base)
        run_id = start_run(place)
        served.wait_for(lambda: state_of(run_id).is_final(), "the run to end")
        state = state_of(run_id)
        assert state.name == "Released", state
        assert "## Gate" in report_of(state)
        assert place.log()[-1].kind == "deployed"
        # The lists of the V1 UI hide runs with custom state names.
        assert f"/v2/runs/flow-run/{run_id}" in served.output.read_text()

    def test_the_report_of_a_killed_run_says_that_it_crashed(self, served, tmp_path, tiny_base):
        run_id = start_run(Place(tmp_path, tiny_base), name="doomed", training__epochs=1000)
        trainer = trainer_of(served, run_id)
        flow_run_of(trainer).kill()
        served.wait_for(lambda: state_of(run_id).is_crashed(), "the crash, seen by the worker")
        report = served.wait_for(
            lambda: "doomed: Crashed" in (text := report_of(state_of(run_id))) and text,
            "the report of the crash",
        )
        assert "Nothing was published by this run. Deployed: nothing yet." in report
        assert f"`prefect flow-run retry {run_id}`" in report
        served.wait_for(lambda: not trainer.is_running(), "the end of the training program")

    def test_a_run_cancelled_in_the_ui_goes_on_from_its_checkpoint_when_it_is_retried(
        self, served, tmp_path, tiny_base
    ):
        place = Place(tmp_path, tiny_base)
        run_id = start_run(
            place, name="resumed", training__epochs=30, training__checkpoint_minutes=0.01
        )
        trainer = trainer_of(served, run_id)
        kept = f"{place.folder}/store/checkpoints/*/*.json"
        served.wait_for(lambda: glob(kept), "a checkpoint")
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Cancelling())
        served.wait_for(lambda: state_of(run_id).name == "Cancelled", "the cancellation")
        served.wait_for(lambda: not trainer.is_running(), "the end of the training program")
        report = report_of(state_of(run_id))
        assert report.startswith("# resumed: Cancelled")
        assert "**Cause:** cancelled" in report
        said = r"reached step (\d+) of \d+; the next run goes on from the checkpoint of step \1\."
        step = re.search(said, report)[1]

        # The worker confirms the cancellation after the run has said so itself.
        served.wait_for(lambda: "successfully" in (state_of(run_id).message or ""), "the worker")
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, AwaitingRetry(), force=True)
        served.wait_for(lambda: state_of(run_id).is_final(), "the run to end")
        assert state_of(run_id).name == "Released", state_of(run_id)
        assert any(f"it went on from step {step} of " in text for text in reports_of(run_id))

    def test_stops_everything_that_it_started(self, served):
        started = psutil.Process(served.process.pid).children(recursive=True)
        assert len(started) >= 2
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(LIMIT_SECONDS) == 0
        _, left = psutil.wait_procs(started, timeout=LIMIT_SECONDS)
        assert left == []


def trainer_of(served: Served, run_id: Any) -> psutil.Process:
    """The training program of a run, once it has started."""

    def training() -> list[psutil.Process]:
        state = state_of(run_id)
        assert not state.is_final(), f"the run ended before it trained: {state}"
        return training_programs(served.process.pid)

    (trainer,) = served.wait_for(training, "training")
    return trainer


def flow_run_of(program: psutil.Process) -> psutil.Process:
    """The process of the flow run that started a program: its nearest parent that is Prefect."""
    return next(
        parent
        for parent in program.parents()
        if any(part.startswith("prefect") for part in parent.cmdline())
    )
