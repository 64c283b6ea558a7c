"""Waiting for events in tests: as long as a busy machine may take, and no longer than needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LIMIT_SECONDS = 500
"""Below the limit of a test (pyproject.toml), so that a failure says what did not happen."""


def wait_for(event: Callable[[], Any], what: str, seconds: float = LIMIT_SECONDS) -> Any:
    """What a function returns as soon as it is true.

    Args:
        event: Called twice a second. An `AssertionError` of it ends the wait.
        what: Of the event, for the failure.
        seconds: After which the test fails.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := event():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")
