"""What work in progress has to say, for whoever shows it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Protocol


class Listener(Protocol):
    """Shows what is being done."""

    def status(self, sentence: str) -> None:
        """What is being done, or waited for."""

    def training(self, sentence: str, history: Sequence[dict[str, float]]) -> None:
        """How far a training is.

        Args:
            sentence: In words.
            history: Losses so far, as in `Finetuned.history`.
        """


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def telling(listener: Listener) -> Iterator[None]:
    """Inside this block, what is being done, or waited for, goes to a listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(sentence: str) -> bool:
    """Say what is being done, or waited for; returns whether anybody listens."""
    listener = _listener.get()
    if listener:
        listener.status(sentence)
    return listener is not None


def tell_training(sentence: str, history: Sequence[dict[str, float]]) -> None:
    """Say how far a training is, as in `Listener.training`."""
    if listener := _listener.get():
        listener.training(sentence, history)
