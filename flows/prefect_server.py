"""Which Prefect server the command line talks to.

The one that Prefect is configured for; otherwise `make server`'s, if it runs on this machine; and
otherwise a temporary one, which ends with the command. The temporary one has a database of its own:
two servers that share one get in each other's way.

As a program (`python -m flows.prefect_server PORT`), this is the temporary server. It ends when its
standard input is closed, which no death of its parent can prevent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts.errors import NotFound

START_LIMIT_SECONDS = 120
_HOME = "burnish"
_RECORD = "burnish-server.json"


@contextlib.contextmanager
def some_server() -> Iterator[None]:
    """Within this block, this process talks to a server, if need be to a temporary one."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lasting_server())
        except NotFound:
            api = stack.enter_context(_temporary_server(PREFECT_HOME.value() / _HOME))
            stack.enter_context(temporary_settings({PREFECT_API_URL: api}))
        yield


@contextlib.contextmanager
def lasting_server() -> Iterator[None]:
    """Within this block, this process talks to a server that outlives it.

    Raises:
        NotFound: There is none.
    """
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_HOME,
        PREFECT_UI_URL,
        temporary_settings,
    )

    if PREFECT_API_URL.value():
        yield
    elif api := running_server(PREFECT_HOME.value()):
        with temporary_settings({PREFECT_API_URL: api, PREFECT_UI_URL: pages_of(api)}):
            yield
    else:
        raise NotFound(
            "the Prefect server",
            "neither PREFECT_API_URL nor a running `make server`",
            "one of them",
            "run `make server`, or set PREFECT_API_URL=http://HOST:4200/api",
        )


def pages_of(api: str) -> str:
    """The address of a server's UI: its second version, since the lists of the first one leave out
    runs whose states have names of their own, such as ours."""
    return f"{api.removesuffix('/api')}/v2"


def record_server(home: Path, api: str) -> None:
    """Let commands on this machine find the server that this process has started."""
    home.mkdir(parents=True, exist_ok=True)
    (home / _RECORD).write_text(json.dumps({"api": api}))


def running_server(home: Path) -> str:
    """The API's URL of the server that was recorded and still answers; empty if there is none."""
    try:
        api = json.loads((home / _RECORD).read_text())["api"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return api if _answers(api) else ""


def _answers(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2):
            return True
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _temporary_server(home: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    home.mkdir(parents=True, exist_ok=True)
    # In a session of its own: Ctrl-C is for the run, which needs a server to end in order.
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.prefect_server", str(port)],
        env={**os.environ, "PREFECT_HOME": str(home), "PREFECT_UI_ENABLED": "0"},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while not _answers(api):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"Prefect's temporary server did not start: see {home}")
            time.sleep(0.05)
        yield api
    finally:
        _send_what_is_left()
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()


def _send_what_is_left() -> None:
    """Logs and events are sent from threads, which would look for the server when it is gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(at_exit=False)
    EventsWorker.drain_all(at_exit=False)


def main() -> None:
    """Serve until standard input is closed."""
    import uvicorn

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    # Prefect's own temporary server is started so.
    os.environ.update({"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"})
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main()
