"""`make server` on a free port, for tests that use it as people do."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from tests.flows.conftest import Place
from tests.flows.running import write_recipe
from tests.waiting import wait_for

# A server, a worker and a training may each take minutes on a busy machine.
LIMIT_SECONDS = 1200


@dataclass
class Served:
    """A running `python -m infra.serve`. Its output goes to a file: it would block on a pipe that
    nobody reads."""

    process: subprocess.Popen
    port: int
    home: Path
    environment: dict[str, str]

    @property
    def output(self) -> Path:
        return self.home / "output"

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def pages(self) -> str:
        """The address of the UI."""
        return f"http://127.0.0.1:{self.port}/v2"

    def wait_for(self, event: Any, what: str) -> Any:
        """As `wait_for`; fails with the output as soon as the server ends."""

        def checked() -> Any:
            assert self.process.poll() is None, self.output.read_text()[-5000:]
            return event()

        return wait_for(checked, what, LIMIT_SECONDS)

    def burnish(self, *arguments: str) -> str:
        """Run a command on the server's machine; returns what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def deploy(self, place: Place, *options: str, **changes: Any) -> Any:
        """Deploy a recipe of a place; returns its deployment."""
        recipe = place.recipe(**changes)
        self.burnish("deploy", write_recipe(recipe, place.folder), *options)
        with get_client(sync_client=True) as client:
            return client.read_deployment_by_name(f"retrain/{recipe.name}")

    def ended(self, run_id: Any) -> Any:
        """The last state of a run, once it has ended."""
        self.wait_for(lambda: state_of(run_id).is_final(), "the run to end")
        return state_of(run_id)


def start(home: Path, **variables: str) -> Served:
    """Start it, with a store and a Prefect home in a folder, and variables in its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "BURNISH_PORT": str(port),
        "BURNISH_STORE": str(home / "store"),
        "PREFECT_HOME": str(home / "prefect"),
        **variables,
    }
    environment.pop("PREFECT_API_URL", None)
    # A shell that starts the tests in the background has them, and this, ignore Ctrl-C.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}\nfrom infra.serve import main\nraise SystemExit(main())"
    with open(home / "output", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Served(process, port, home, environment)


def stop(served: Served) -> int:
    """Press Ctrl-C unless that was done; returns the exit status."""
    if served.process.poll() is None:
        served.process.send_signal(signal.SIGINT)
    return served.process.wait(LIMIT_SECONDS)


def workers_are_ready() -> bool:
    """Whether the pools have workers."""
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:
        pools = [client.read_work_pool(name) for name in ("cpu", "watch")]
        return all(pool.status and pool.status.value == "READY" for pool in pools)
    return False


def state_of(run_id: Any) -> Any:
    """The state of a run, with the run's id."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
    state.state_details.flow_run_id = run_id
    return state


def runs_of(deployment: Any) -> list:
    """The runs of a deployment that are not still to come."""
    return [run for run in all_runs_of(deployment) if not run.state.is_scheduled()]


def all_runs_of(deployment: Any) -> list:
    """The runs of a deployment that somebody started, or that are not still to come."""
    mine = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(deployment_filter=mine)
    return [run for run in found if not (run.auto_scheduled and run.state.is_scheduled())]
