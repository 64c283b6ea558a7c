"""The logger of a run."""

from __future__ import annotations

import logging

from prefect import get_run_logger
from prefect.exceptions import FailedRun, MissingContextError

# What a line says of a run, for a terminal that shows it otherwise than as a log.
NOW = {"shown": "now"}
"""What is being done, until the next such line."""
STEP = {"shown": "step"}
"""A step's result."""
WARNING = {"shown": "warning"}
"""What a reader of the report should know."""
TICKS = logging.getLogger("burnish.ticks")
"""For what changes every other second: silent, unless a terminal sets its level."""


def run_logger() -> logging.Logger | logging.LoggerAdapter:
    """The Prefect run's logger, or an ordinary one outside of runs."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("burnish")


class KnownCauses(logging.Filter):
    """Keeps Prefect from logging a failure with a known cause as if it were a defect.

    Prefect's engine logs a returned `Failed` state twice, once with an empty traceback, and logs a
    failed deployed run with a traceback of its own internals.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("Task run failed with state"):
            return False
        if record.exc_info and isinstance(record.exc_info[1], FailedRun):
            record.exc_info = None
        return True
