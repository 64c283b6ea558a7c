"""Runs Burnish on one machine (`make server`): a Prefect server with its UI, a work pool, the
deployments of the shipped recipes, and a worker. Ctrl-C stops everything.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request

from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.deployments import POOL, WATCH_POOL, deploy
from flows.endings import close_report_of_ended_run
from flows.prefect_server import pages_of, record_server
from flows.recipe_files import shipped_recipes
from flows.retrain import retrain
from infra.processes import ROOT, handle_signals, start, stop
from tasks.storage.store import sweep_machine

PORT = int(os.environ.get("BURNISH_PORT", "4200"))
API = f"http://127.0.0.1:{PORT}/api"
START_LIMIT_SECONDS = 180


def main() -> int:
    """Start everything, wait until it is stopped, and return the exit status."""
    os.environ.setdefault("BURNISH_STORE", str(ROOT / ".burnish"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # With leases in memory, restarting the server would crash runs that hold a concurrency slot.
    os.environ.setdefault(
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE",
        "prefect.server.concurrency.lease_storage.filesystem",
    )
    os.environ.setdefault("PREFECT_SERVER_CSRF_PROTECTION_ENABLED", "true")
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password)
    # A run that somebody started by hand should not wait 10 seconds for the worker to look.
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
    os.environ["PREFECT_API_URL"] = API
    os.environ.setdefault("PREFECT_UI_URL", pages_of(API))
    os.environ["PREFECT_CLI_PROMPT"] = "false"
    handle_signals()
    services: list[subprocess.Popen] = []
    try:
        services.append(start("server", "start", "--host", "127.0.0.1", "--port", str(PORT)))
        _wait_for_server(services[0])
        with temporary_settings({PREFECT_API_URL: API}):
            for recipe in shipped_recipes():
                deploy(recipe, directory=str(ROOT), take_over=False)
            _close_abandoned_runs()
        sweep_machine()
        record_server(PREFECT_HOME.value(), API)
        for pool in (POOL, WATCH_POOL):
            options = ("--pool", pool, "--type", "process", "--name", f"burnish-{pool}")
            services.append(start("worker", "start", *options))
        print(f"\nBurnish is at {pages_of(API)} (Ctrl-C stops it)\n", flush=True)
        while all(process.poll() is None for process in services):
            time.sleep(1)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in reversed(services):
            stop(process)


def _wait_for_server(server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(
                f"The Prefect server did not start: is port {PORT} taken? "
                "Choose another port: BURNISH_PORT=4201 make server"
            )
        try:
            urllib.request.urlopen(f"{API}/health", timeout=2)
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"The Prefect server did not answer within {START_LIMIT_SECONDS} s")


def _close_abandoned_runs() -> None:
    """Mark runs that an earlier worker abandoned as crashed.

    Only this worker takes runs from the pool, and it has not started yet.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.states import Crashed

    crashed = Crashed(message="The server and its worker were stopped during this run.")
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state={"type": {"any_": ["RUNNING", "CANCELLING"]}}),
            work_pool_filter=WorkPoolFilter(name={"any_": [POOL]}),
        )
        for left in runs:
            client.set_flow_run_state(left.id, crashed, force=True)
            with contextlib.suppress(Exception):  # Its report is no reason not to start.
                close_report_of_ended_run(retrain, left, crashed)
            print(f"Marked the interrupted run {left.name} as crashed ({left.id})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
