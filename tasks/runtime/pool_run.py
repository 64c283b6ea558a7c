"""A worker's side of a pool run: says that it lives and what it does, and stops if nobody waits.

`pool-runs/<run>/run.json` is written by the run alone, `pool-runs/<run>/waiters/<name>.json` by
each run that waits for it. Both are written every few seconds, so that their bytes change.
"""

from __future__ import annotations

import contextlib
import platform
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from tasks.contracts.errors import BurnishError
from tasks.contracts.pool import Ending, PoolRun
from tasks.runtime.termination import ask_to_stop
from tasks.storage.objects import Objects
from tasks.storage.store import Store

BEAT_SECONDS = 5.0
WAITER_GONE_SECONDS = 60.0
"""How long a waiter may be silent, by the run's own clock."""
NOBODY_SECONDS = 15.0
"""How long a run goes on if nobody says that he waits, not even with an old word."""
_FORGOTTEN = timedelta(days=14)


def run_path(run_id: str) -> str:
    """Where a run of the pool says how it is."""
    return f"pool-runs/{run_id}/run.json"


def waiters_path(run_id: str) -> str:
    """The folder of those who wait for a run of the pool."""
    return f"pool-runs/{run_id}/waiters/"


class PoolRunStatus:
    """What this run says of itself, kept up to date in the store by a thread.

    Attributes:
        unwanted: Whether the run was asked to stop because nobody waits for it any more.

    Args:
        store: Where those who wait look.
        run_id: This run.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._objects, self._path = store.objects, run_path(run_id)
        self._waiters = Waiters(store.objects, run_id)
        self._said = PoolRun(host=platform.node())
        self._lock = threading.Lock()
        self._done = threading.Event()
        self.unwanted = False
        self._thread = threading.Thread(target=self._beat, name="pool-run", daemon=True)

    @contextlib.contextmanager
    def kept_up(self) -> Iterator[PoolRunStatus]:
        """Inside this block, the run says that it lives."""
        self._write()
        self._thread.start()
        try:
            yield self
        finally:
            self._done.set()
            self._thread.join()

    def doing(self, sentence: str) -> None:
        """Say what the run does."""
        self._said = self._said.model_copy(update={"doing": sentence})

    def end(self, ended: Ending, error: BurnishError | None = None, kept: str = "") -> None:
        """Say how the run ended: its last word.

        Args:
            ended: How.
            error: What failed.
            kept: How far a training got, as a sentence.
        """
        self._done.set()
        last = {
            "ended": ended,
            "error": error.to_json() if error else None,
            "kept": error.kept if error else kept,
            "history": tuple(error.history) if error else (),
        }
        self._said = self._said.model_copy(update=last)
        self._write()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            # A store that is away for a while must not end a training.
            with contextlib.suppress(BurnishError):
                self._write()
            if not self.unwanted and not self._waiters.any():
                self.unwanted = True
                ask_to_stop()

    def _write(self) -> None:
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            said = self._said.model_copy(update={"beats": self._said.beats + 1, "at": now})
            self._said = said
            self._objects.write(self._path, said.model_dump_json(indent=1).encode())


class Waiters:
    """Those who wait for a run, judged by how long ago their word changed, by this clock."""

    def __init__(self, objects: Objects, run_id: str) -> None:
        self._objects, self._folder = objects, waiters_path(run_id)
        self._tags: dict[str, str] = {}
        self._changed: dict[str, float] = {}
        self._since = time.monotonic()

    def any(self) -> bool:
        """Whether somebody still waits; True if the store cannot be asked."""
        now = time.monotonic()
        try:
            paths = list(self._objects.sizes(self._folder))
            found = {path: self._objects.read(path) for path in paths}
        except BurnishError:
            self._since = now
            self._changed = dict.fromkeys(self._changed, now)
            return True
        for path, word in found.items():
            if word and word[1] != self._tags.get(path):
                self._tags[path], self._changed[path] = word[1], now
        self._changed = {path: when for path, when in self._changed.items() if path in found}
        if self._changed:
            self._since = now
            return any(now - when < WAITER_GONE_SECONDS for when in self._changed.values())
        return now - self._since < NOBODY_SECONDS


def forget_old_runs(store: Store) -> None:
    """Delete what runs of pools said two weeks ago."""
    oldest = (datetime.now(UTC) - _FORGOTTEN).isoformat(timespec="seconds")
    paths = list(store.objects.sizes("pool-runs/"))
    for path in paths:
        said = store.read_json(path) if path.endswith("/run.json") else None
        if said and said.get("at", oldest) < oldest:
            folder = path.removesuffix("run.json")
            for each in filter(lambda other: other.startswith(folder), paths):
                store.objects.delete(each)
