"""Runs Burnish on one machine (`make server`): a Prefect server with its UI, a work pool, the
deployments of prefect.yaml, and a worker. Ctrl-C stops everything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
PORT = int(os.environ.get("BURNISH_PORT", "4200"))
API = f"http://127.0.0.1:{PORT}/api"
POOL = "cpu"
START_LIMIT_SECONDS = 180
STOP_LIMIT_SECONDS = 20


def main() -> int:
    """Start everything, wait until it is stopped, and return the exit status."""
    os.environ.setdefault("BURNISH_STORE", str(ROOT / ".burnish"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # With leases in memory, restarting the server would crash runs that hold a concurrency slot.
    os.environ.setdefault(
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE",
        "prefect.server.concurrency.lease_storage.filesystem",
    )
    os.environ["PREFECT_API_URL"] = API
    # By default, links in logs lead to the V1 UI, whose lists leave out runs with custom state
    # names, such as ours.
    os.environ.setdefault("PREFECT_UI_URL", f"{API.removesuffix('/api')}/v2")
    os.environ["PREFECT_CLI_PROMPT"] = "false"
    # A shell without job control starts background commands with SIGINT ignored. The processes
    # started here would inherit that, and could not be stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    services: list[subprocess.Popen] = []
    try:
        services.append(_start("server", "start", "--host", "127.0.0.1", "--port", str(PORT)))
        _wait_for_server(services[0])
        _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
        _prefect("--no-prompt", "deploy", "--all")
        _close_abandoned_runs()
        services.append(_start("worker", "start", "--pool", POOL, "--name", "burnish"))
        print(f"\nBurnish is at {API.removesuffix('/api')} (Ctrl-C stops it)\n", flush=True)
        while all(process.poll() is None for process in services):
            time.sleep(1)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in reversed(services):
            _stop(process)


def _start(*command: str) -> subprocess.Popen:
    # In a new session, so that Ctrl-C reaches this process only. It stops the others in order: a
    # worker that loses its server marks its runs as crashed.
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _prefect(*command: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "prefect", *command], cwd=ROOT, check=True, stdin=subprocess.DEVNULL
    )


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
        for run in runs:
            client.set_flow_run_state(run.id, crashed, force=True)
            print(f"Marked the interrupted run {run.name} as crashed ({run.id})", flush=True)


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(STOP_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Runs have process groups of their own. Those that are left have lost their worker.
    _, left = psutil.wait_procs(children, timeout=STOP_LIMIT_SECONDS)
    for child in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


if __name__ == "__main__":
    sys.exit(main())
