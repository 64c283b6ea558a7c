"""`make server`: a server, a worker and the deployments; a run from the form does the job."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

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

    def test_ends_with_everything_that_it_started(self, served):
        started = _descendants(served.pid)
        assert len(started) >= 2
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 0
        deadline = time.monotonic() + 20
        while any(os.path.exists(f"/proc/{pid}") for pid in started):
            assert time.monotonic() < deadline, "a process was left behind"
            time.sleep(0.5)


def _descendants(pid: int) -> list[int]:
    found = []
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    for child in children.split():
        found += [int(child), *_descendants(int(child))]
    return found
