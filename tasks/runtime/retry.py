"""Try again what failed for a cause that passes by itself."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from tasks.contracts.errors import HubFailed, OutOfHostMemory, StorageFailed, describe
from tasks.runtime.logs import run_logger
from tasks.runtime.termination import check_sigterm

Result = TypeVar("Result")

VARIABLE = "BURNISH_RETRY_SECONDS"
"""Environment variable: the seconds before each further try, such as `15,60`; empty for none."""
_DEFAULT = "15,60"
# Requests are repeated by the clients too, within seconds; this is for an outage of minutes.
_PASSING = (StorageFailed, HubFailed, OutOfHostMemory)
_JITTER = 0.2


def with_retries(what: str, work: Callable[[], Result]) -> Result:
    """The result of some work, which must do no harm if it is repeated.

    Args:
        what: Is done, for the log.
        work: Does it.

    Raises:
        Exception: What the last try raised; at once, if another try would not help.
    """
    for seconds in map(float, filter(None, os.environ.get(VARIABLE, _DEFAULT).split(","))):
        try:
            return work()
        except Exception as error:
            known = describe(error)
            if not isinstance(known, _PASSING):
                raise
            # Workers that failed together do not come back together.
            wait = seconds * random.uniform(1 - _JITTER, 1 + _JITTER)
            run_logger().warning("%s failed (%s); next try in %.0f s", what, known, wait)
        _sleep(wait)
    return work()


def _sleep(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check_sigterm()
        time.sleep(min(0.5, left))
