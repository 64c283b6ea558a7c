"""`make server`: a server, a worker and the deployments; a run from the form does the job."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.flows.conftest import Place, report_of
from tests.tasks.samples import some_rows, write_jsonl

START_SECONDS, RUN_SECONDS = 180, 240


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
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.serve"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
            _wait_for_worker()
            yield process
    finally:
        process.kill()


def _wait_for_worker():
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with get_client(sync_client=True) as client:
                pool = client.read_work_pool("cpu")
                if pool.status and pool.status.value == "READY":
                    return
        except Exception:
            time.sleep(1)
        time.sleep(0.5)
    raise AssertionError("no worker")


@pytest.mark.slow
class TestServer:
    def test_the_deployment_is_there_with_its_schedule_off(self, served):
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("retrain/news")
        assert [schedule.active for schedule in deployment.schedules] == [False]
        assert deployment.parameters["recipe"]["name"] == "news"
        assert "GateRecipe" in deployment.parameter_openapi_schema["definitions"]

    def test_a_run_of_the_deployment_releases_and_carries_its_report(
        self, served, tmp_path, tiny_base
    ):
        place = Place(tmp_path, tiny_base)
        write_jsonl(place.data, some_rows(600))
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("retrain/news")
            run = client.create_flow_run_from_deployment(
                deployment.id, parameters={"recipe": place.recipe().model_dump(mode="json")}
            )
            deadline = time.monotonic() + RUN_SECONDS
            while time.monotonic() < deadline:
                run = client.read_flow_run(run.id)
                if run.state.is_final():
                    break
                time.sleep(1)
        assert run.state.name == "Released", run.state
        run.state.state_details.flow_run_id = run.id
        assert "## Gate" in report_of(run.state)
        assert place.log()[-1].kind == "deployed"

    def test_the_report_of_a_run_that_was_killed_says_so(self, served, tmp_path, tiny_base):
        place = Place(tmp_path, tiny_base)
        write_jsonl(place.data, some_rows(600))
        recipe = place.recipe(name="doomed", training__epochs=1000)
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("retrain/news")
            run = client.create_flow_run_from_deployment(
                deployment.id, parameters={"recipe": recipe.model_dump(mode="json")}
            )
            (trainer,) = _wait(lambda: _training(served.pid))
            _flow_run_of(trainer).kill()
            ended = _wait(lambda: client.read_flow_run(run.id).state.is_crashed())
            assert ended
            state = client.read_flow_run(run.id).state
        state.state_details.flow_run_id = run.id
        report = _wait(lambda: "doomed: Crashed" in report_of(state) and report_of(state))
        assert "Nothing was published. Deployed: nothing is deployed yet." in report
        assert f"`prefect flow-run retry {run.id}`" in report
        assert _wait(lambda: not trainer.is_running()), "the training program was left behind"

    def test_ends_with_everything_that_it_started(self, served):
        started = psutil.Process(served.pid).children(recursive=True)
        assert len(started) >= 2
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 0
        _, left = psutil.wait_procs(started, timeout=20)
        assert left == []


def _training(pid: int) -> list[psutil.Process]:
    """The training programs below a process, by the log that they write: one that was forked has
    the command line of its host."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(file.path.endswith("/finetune.log") for file in child.open_files()):
                found.append(child)
    return found


def _flow_run_of(program: psutil.Process) -> psutil.Process:
    parent = program.parent()
    while "tasks.runtime.fork_server_program" in parent.cmdline():
        parent = parent.parent()
    return parent


def _wait(ready: Callable[[], Any]) -> Any:
    """What a function answers as soon as it is true."""
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        if answer := ready():
            return answer
        time.sleep(0.5)
    raise AssertionError("it did not happen in time")
