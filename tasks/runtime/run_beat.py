"""A run's sign of life in its store: Prefect's own heartbeat stops if its server is away.

`runs/<run>.json` is rewritten every few seconds, so that its bytes change, and deleted at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator

import orjson

from tasks.contracts.errors import BurnishError
from tasks.storage.store import Store

BEAT_SECONDS = 15.0


def beat_path(run_id: str) -> str:
    """Where a run says that it lives."""
    return f"runs/{run_id}.json"


@contextlib.contextmanager
def beating(store: Store, run_id: str) -> Iterator[None]:
    """Inside this block, the run says that it lives."""
    done, path = threading.Event(), beat_path(run_id)

    def beat() -> None:
        for beats in itertools.count():
            # A store that is away for a while must not end a run.
            with contextlib.suppress(BurnishError):
                store.objects.write(path, orjson.dumps({"beats": beats}))
            if done.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="run-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(BurnishError):
            store.objects.delete(path)
