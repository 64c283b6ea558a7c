"""Programs whose job and result are any JSON values: for tests of how programs are run."""

from __future__ import annotations

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
