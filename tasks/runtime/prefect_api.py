"""Calls to Prefect's API that neither block a run nor fail it."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import Event
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings


@contextlib.contextmanager
def brief_client(seconds: float = 20.0) -> Iterator[SyncPrefectClient]:
    """A Prefect client that gives up at the first failure: an ordinary one retries for a minute
    while the API is away.

    Args:
        seconds: Time limit of each request.
    """
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": seconds}) as client,
    ):
        yield client


def post_event(client: SyncPrefectClient, event: Event) -> None:
    """Send an event, and wait until the server has taken it: `emit_event` of Prefect only queues
    it, and it is lost if the process ends or the API is away.

    Raises:
        Exception: The server cannot be reached, or refuses it.
    """
    answer = client.request("POST", "/events", json=[event.model_dump(mode="json")])
    answer.raise_for_status()


class BackgroundCall:
    """Makes calls in a thread, one at a time. A call that is still waiting is replaced by the next
    one, so what is shown is never older than one call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], None]) -> None:
        """Make a call soon, in this thread's context, without waiting for it."""
        context = contextvars.copy_context()
        with self._lock:
            self._next = lambda: context.run(call)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def flush(self, seconds: float) -> None:
        """Wait until all calls were made, at most so many seconds."""
        if thread := self._thread:
            thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._lock:
                call, self._next = self._next, None
                if call is None:
                    self._thread = None
                    return
            call()
