"""Requests to stop (SIGTERM) that cannot get lost.

Within a flow, Prefect's signal handler raises `TerminationSignal` wherever Python happens to be. In
a finalizer Python prints and drops it, and the run goes on until it is killed. Replacing that
handler would make Prefect treat a cancellation as a crash. But the interpreter also writes the
number of each signal to a wake-up descriptor, whatever becomes of the exception: a flow that polls
it learns of every signal (https://docs.python.org/3.11/library/signal.html#signal.set_wakeup_fd).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

from prefect.exceptions import TerminationSignal

_signals: socket.socket | None = None
_asked = threading.Event()


@contextlib.contextmanager
def watch_sigterm() -> Iterator[None]:
    """Within this block, `check_sigterm` finds a request to stop whose exception was lost.

    Signals reach the main thread only: in another thread, this does nothing.
    """
    global _signals
    if threading.current_thread() is not threading.main_thread() or _signals is not None:
        yield
        return
    _signals, written = socket.socketpair()
    _signals.setblocking(False)
    written.setblocking(False)
    before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for end in (written, _signals):
            end.close()
        _signals = None


def ask_to_stop() -> None:
    """Let `check_sigterm` stop this process's run as if SIGTERM had arrived; for other threads."""
    _asked.set()


def check_sigterm() -> None:
    """Stop here if the run was asked to.

    Raises:
        TerminationSignal: SIGTERM arrived since the last call, within `watch_sigterm`; or a thread
            asked.
        KeyboardInterrupt: SIGINT did.
    """
    if _asked.is_set():
        _asked.clear()
        raise TerminationSignal(signal=signal.SIGTERM)
    if _signals is None:
        return
    with contextlib.suppress(BlockingIOError):
        arrived = _signals.recv(4096)
        if signal.SIGTERM in arrived:
            raise TerminationSignal(signal=signal.SIGTERM)
        if signal.SIGINT in arrived:
            raise KeyboardInterrupt


def _forget() -> None:
    """A forked process shares the descriptor: its signals are not the parent's."""
    global _signals
    if _signals is not None:
        signal.set_wakeup_fd(-1)
        _signals = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
