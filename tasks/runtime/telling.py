"""What work in progress has to say, for whoever shows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def telling(listener: Callable[[str], None]) -> Iterator[None]:
    """Inside this block, sentences about what is being done, or waited for, go to a listener.

    Args:
        listener: Called with a sentence.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(sentence: str) -> bool:
    """Say what is being done, or waited for; returns whether anybody listens."""
    listener = _listener.get()
    if listener:
        listener(sentence)
    return listener is not None
