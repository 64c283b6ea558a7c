"""Signs of life in the store: small objects that are rewritten every few seconds, so that their
bytes change, and deleted at the end.

A run has one at `runs/<run>.json`, since Prefect's own heartbeat stops if its server is away.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import orjson

from tasks.contracts.errors import BurnishError
from tasks.storage.store import Store

BEAT_SECONDS = 15.0


def beat_path(run_id: str) -> str:
    """Where a run says that it lives."""
    return f"runs/{run_id}.json"


def beating(store: Store, run_id: str) -> contextlib.AbstractContextManager[None]:
    """Inside this block, the run says that it lives."""
    return rewriting(
        store, beat_path(run_id), lambda beats: orjson.dumps({"beats": beats}), BEAT_SECONDS
    )


@contextlib.contextmanager
def rewriting(
    store: Store, path: str, word: Callable[[int], bytes], seconds: float
) -> Iterator[None]:
    """Inside this block, an object is rewritten by a thread, and deleted at the end.

    Args:
        store: The store.
        path: Of the object.
        word: What it says at each beat; the beats are counted from 0.
        seconds: Between two beats.
    """
    done = threading.Event()

    def beat() -> None:
        for beats in itertools.count():
            # A store that is away for a while must not end a run.
            with contextlib.suppress(BurnishError):
                store.objects.write(path, word(beats))
            if done.wait(seconds):
                return

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(BurnishError):
            store.objects.delete(path)
