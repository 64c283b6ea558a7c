"""Leases: of several workers that meet the same key, one does the work and the others wait.

A lease is a small object in the store, written only with conditions. Its holder renews it, so that
its bytes change; a waiter takes over if they stood still for a while by the waiter's own clock, or
if it can see that the holder's process is gone. Each holder gets a higher number than the one
before. A lease is never deleted, only replaced: a deleted one could be created by two.

A holder that cannot reach the store works on. One that reads another holder's name stops. (Fencing
numbers: M. Kleppmann, "How to do distributed locking", 2016.)
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tasks.contracts.base import Contract
from tasks.contracts.errors import BurnishError
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.telling import tell
from tasks.runtime.termination import check_sigterm
from tasks.storage.objects import Objects

RENEW_SECONDS = 5.0
STALE_SECONDS = 30.0
"""How long a lease may stand still. A holder that was paused for longer has lost it."""
_POLL_SECONDS = 1.0

_held: ContextVar[Lease | None] = ContextVar("held_lease", default=None)


class Holder(Contract):
    """What a lease's object says.

    Attributes:
        number: The fencing number: higher than that of every holder before.
        nonce: Random, so that no two holders write the same bytes.
        renewals: Counts up, so that the bytes change.
        released: Whether the holder is done.
        run_name, host, since: For those who wait.
        machine, pid, started: Of the holder's process, for those on the same machine.
    """

    number: int
    nonce: str
    renewals: int = 0
    released: bool = False
    run_name: str
    host: str
    since: str
    machine: str
    pid: int
    started: float


class LeaseLost(Exception):
    """Another worker took over, since this one was not heard of for too long."""


class Lease:
    """A lease that this process holds.

    Attributes:
        number: The fencing number.
    """

    def __init__(self, objects: Objects, path: str, holder: Holder, tag: str) -> None:
        self._objects, self._path, self._holder, self._tag = objects, path, holder, tag
        self.number = holder.number
        self._lost = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="renew-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Stop here if another worker took over.

        Raises:
            LeaseLost: It did.
        """
        if self._lost:
            raise LeaseLost

    def confirm(self) -> None:
        """Ask the store whether this process still holds the lease.

        Raises:
            LeaseLost: Another worker took over.
            StorageFailed, NoAccess: The store cannot be asked.
        """
        found = self._objects.read(self._path)
        if found is None or _parse(found[0]).nonce != self._holder.nonce:
            self._lost = True
        self.check()

    def release(self) -> None:
        """Let the next one have it."""
        self._done.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(BurnishError):
                self._replace(self._holder.model_copy(update={"released": True}))

    def _renew(self) -> None:
        while not self._done.wait(RENEW_SECONDS) and not self._lost:
            # A store that is away for a while must not end a training.
            with contextlib.suppress(BurnishError):
                renewed = self._holder.model_copy(update={"renewals": self._holder.renewals + 1})
                if not self._replace(renewed):
                    self._read_back()

    def _replace(self, holder: Holder) -> bool:
        data = _bytes(holder)
        if not self._objects.replace(self._path, data, self._tag):
            return False
        self._holder = holder
        self._read_back()
        return True

    def _read_back(self) -> None:
        """Learn the tag of what is there, which may be another holder's."""
        found = self._objects.read(self._path)
        if found is None or _parse(found[0]).nonce != self._holder.nonce:
            self._lost = True
        else:
            self._holder, self._tag = _parse(found[0]), found[1]


@contextlib.contextmanager
def lease(objects: Objects, path: str, context: RunContext) -> Iterator[Lease]:
    """Wait for a lease, and hold it inside this block.

    Args:
        objects: The store's.
        path: Of the lease.
        context: The run, which those who wait are told.

    Raises:
        StorageFailed, NoAccess: The store cannot be used.
    """
    held = _acquire(objects, path, context)
    token = _held.set(held)
    try:
        yield held
    finally:
        _held.reset(token)
        held.release()


def check_lease() -> None:
    """Stop here if this work was taken over by another worker.

    Raises:
        LeaseLost: It was.
    """
    if held := _held.get():
        held.check()


def held_number() -> int:
    """The fencing number of the lease that is held; 0 without one."""
    held = _held.get()
    return held.number if held else 0


def _acquire(objects: Objects, path: str, context: RunContext) -> Lease:
    seen, since, told = "", time.monotonic(), ""
    while True:
        found = objects.read(path)
        if found is None:
            mine = _holder(1, context)
            if objects.create(path, _bytes(mine)):
                return _held_by(objects, path, mine)
            continue
        other, tag = _parse(found[0]), found[1]
        if tag != seen:
            seen, since = tag, time.monotonic()
        free = other.released or _is_gone(other) or time.monotonic() - since > STALE_SECONDS
        if free:
            mine = _holder(other.number + 1, context)
            if objects.replace(path, _bytes(mine), tag):
                return _held_by(objects, path, mine)
            continue
        if other.nonce != told:
            told = other.nonce
            sentence = (
                f"Waiting for run {other.run_name}, which does the same work on {other.host} "
                f"since {other.since}."
            )
            if not tell(sentence):
                run_logger().info(sentence)
        check_sigterm()
        time.sleep(_POLL_SECONDS)


def _held_by(objects: Objects, path: str, mine: Holder) -> Lease:
    found = objects.read(path)
    return Lease(objects, path, mine, found[1] if found else "")


def _holder(number: int, context: RunContext) -> Holder:
    return Holder(
        number=number,
        nonce=uuid.uuid4().hex,
        run_name=context.run_name or "unnamed",
        host=platform.node(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
    )


def _is_gone(holder: Holder) -> bool:
    """Whether the holder ran on this machine and has ended."""
    if not holder.machine or holder.machine != _machine():
        return False
    try:
        process = psutil.Process(holder.pid)
        return (
            abs(process.create_time() - holder.started) > 1.0
            or process.status() == psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@functools.cache
def _machine() -> str:
    """Identifies this machine since its start, and this container; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _bytes(holder: Holder) -> bytes:
    return holder.model_dump_json(indent=1).encode()


def _parse(data: bytes) -> Holder:
    try:
        return Holder.model_validate_json(data)
    except ValueError:
        # Unreadable: nobody's. It is replaced once it has stood still.
        return Holder(
            number=0, nonce="", run_name="?", host="?", since="?", machine="", pid=0, started=0.0
        )
