"""For tests of how programs are run: programs whose job and result are any JSON values, and waiting
for what they do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from tasks.contracts.jobs import Job, Result
from tasks.runtime import program


class AnyJob(Job):
    """A job of any values."""

    values: dict[str, Any]


class AnyResult(Result):
    """A result of any values."""

    values: dict[str, Any]


def run(main: Callable[[dict[str, Any], program.Reporter], Any], graceful: bool = False) -> None:
    """Run a program whose main function takes and returns plain values."""

    def typed(job: AnyJob, reporter: program.Reporter) -> AnyResult:
        return AnyResult(values=main(job.values, reporter) or {})

    program.run(typed, AnyJob, graceful)


# What the source of such a program begins with.
HEADER = "import os, signal, sys, time\nfrom tests.tasks.runtime.programs import run\n"


def wait_until(ready: Callable[[], Any], seconds: float = 120.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(pid: int, seconds: float = 60.0) -> bool:
    """Whether a process ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False
