"""Starts and stops Prefect's servers and workers as processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
STOP_LIMIT_SECONDS = 20
RUN_LIMIT_SECONDS = 30
"""How long a run has to keep its work: as long as Prefect's worker gives a cancelled one."""


def start(*command: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start a `prefect` command that goes on until it is stopped.

    Args:
        command: Its arguments.
        environment: Variables beside this process's own.
    """
    # In a new session, so that Ctrl-C reaches this process only. It stops the others in order: a
    # worker that loses its server marks its runs as crashed.
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", *command],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def handle_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process in order.

    A shell without job control starts background commands with SIGINT ignored. The processes
    started here would inherit that, and could not be stopped.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def stop(process: subprocess.Popen) -> None:
    """Stop a server or a worker, and whatever it has started."""
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


def stop_runs(workers: list[subprocess.Popen]) -> None:
    """Ask the runs of some workers to keep their work and to end, while their workers still report
    what becomes of them."""
    runs = [
        child
        for worker in workers
        if worker.poll() is None
        for child in psutil.Process(worker.pid).children()
    ]
    for child in runs:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    psutil.wait_procs(runs, timeout=RUN_LIMIT_SECONDS)
