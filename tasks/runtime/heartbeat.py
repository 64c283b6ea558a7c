"""Notice a program that stands still.

A thread of the program sends a heartbeat every few seconds, with a counter that its main thread
advances at each step, batch and stage. Its parent can so tell a program that was stopped or is gone
(no heartbeat) from one that hangs (a counter that stands still).
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psutil

from tasks.contracts.errors import Hung

SECONDS = 10.0
"""Between two heartbeats."""
SILENT_SECONDS = 30.0
"""Without any line, after which a program that does not compute either is taken for stopped."""
VARIABLE = "BURNISH_HEARTBEAT_SECONDS"
"""Environment variable that tells a program how often to send one."""
# A process that only waits uses less of a processor.
_IDLE_SHARE = 0.02


class Watch:
    """Watches the heartbeats of a program, in its parent.

    Args:
        name: The program's name, for messages.
        stall_seconds: How long the counter may stand still; None for as long as it likes.
        limit_name: The recipe field that sets this limit.
    """

    def __init__(self, name: str, stall_seconds: float | None, limit_name: str) -> None:
        self._name, self._stall_seconds, self._limit_name = name, stall_seconds, limit_name
        self._heard = self._moved = time.monotonic()
        self._counter = -1
        self._computed: float | None = None

    def hear(self, line: dict[str, Any]) -> None:
        """Take a line of the program, of any kind."""
        now = time.monotonic()
        self._heard, self._computed = now, None
        if line.get("event") != "heartbeat":
            self._moved = now
        elif line["counter"] != self._counter:
            self._counter, self._moved = line["counter"], now

    def check(self, pid: int | None) -> None:
        """Look whether the program still works. Call it when all that it sent was heard.

        Args:
            pid: The program's process; None if it has not begun.

        Raises:
            Hung: It does not.
        """
        now = time.monotonic()
        if pid is None:
            self._heard = self._moved = now
        elif self._stall_seconds and now - self._moved > self._stall_seconds:
            raise Hung(
                f"program {self._name}",
                f"no progress for {(now - self._moved) / 60:.1f} minutes, while its process lives",
                f"a step, a batch or a stage within {self._stall_seconds / 60:g} minutes",
                f"look for a lock, a device or a network share that does not answer; if a step "
                f"really takes that long, raise {self._limit_name}",
            )
        elif now - self._heard > SILENT_SECONDS:
            self._check_silent(pid, now)

    def _check_silent(self, pid: int, now: float) -> None:
        used = _processor_seconds(pid)
        if used is None:
            return  # It has ended: its exit status says why.
        if self._computed is None or used - self._computed > _IDLE_SHARE * SILENT_SECONDS / 2:
            # A library may keep the heartbeat's thread from running, while it computes.
            self._computed, self._heard = used, now - SILENT_SECONDS / 2
            return
        raise Hung(
            f"program {self._name}",
            f"no sign of life for {1.5 * SILENT_SECONDS:.0f} s: its process {_status(pid)}",
            f"a heartbeat every {SECONDS:.0f} s",
            "see who or what stopped the process (SIGSTOP, a frozen container, a disk that does "
            "not answer), and start the run again",
        )


def _processor_seconds(pid: int) -> float | None:
    """What a process and those below it have used of the processor; None if it is gone."""
    try:
        process = psutil.Process(pid)
        every = [process, *process.children(recursive=True)]
    except psutil.Error:
        return None
    total = 0.0
    for each in every:
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def _status(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        if psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            return "is stopped"
    return "neither computes nor reports"
