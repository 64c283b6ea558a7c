"""A Prefect server with its UI, the work pool, the deployments of prefect.yaml, and a worker.

For one machine: `make server`. Everything ends with Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PORT = int(os.environ.get("BURNISH_PORT", "4200"))
API = f"http://127.0.0.1:{PORT}/api"
START_LIMIT_SECONDS = 180
STOP_LIMIT_SECONDS = 20


def main() -> int:
    """Start everything and wait until it is stopped. Returns the exit status."""
    os.environ.setdefault("BURNISH_STORE", str(ROOT / ".burnish"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # In memory, a restart of the server would crash runs that hold a concurrency slot.
    os.environ.setdefault(
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE",
        "prefect.server.concurrency.lease_storage.filesystem",
    )
    os.environ["PREFECT_API_URL"] = API
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    running: list[subprocess.Popen] = []
    try:
        running.append(_start("server", "start", "--host", "127.0.0.1", "--port", str(PORT)))
        _wait_for_server(running[0])
        _prefect("work-pool", "create", "cpu", "--type", "process", "--overwrite")
        _prefect("--no-prompt", "deploy", "--all")
        running.append(_start("worker", "start", "--pool", "cpu", "--name", "burnish"))
        print(f"\nBurnish is at {API.removesuffix('/api')} (Ctrl-C ends it)\n", flush=True)
        while all(process.poll() is None for process in running):
            time.sleep(1)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in reversed(running):
            _stop(process)


def _start(*command: str) -> subprocess.Popen:
    # A session of its own, so that Ctrl-C reaches this process alone, which stops the others in
    # order: a worker that loses its server first would mark its runs as crashed.
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", *command], cwd=ROOT, start_new_session=True
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
                "Choose another with BURNISH_PORT=4201 make server"
            )
        try:
            urllib.request.urlopen(f"{API}/health", timeout=2)
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"The Prefect server did not answer within {START_LIMIT_SECONDS} s")


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
