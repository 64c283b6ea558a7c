"""A run on a terminal: its steps' results, line by line, and below them what it does now."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator

import psutil
from rich.console import Console
from rich.live import Live
from rich.text import Text

from tasks.runtime.logs import NOW, STEP, TICKS, WARNING

EXIT_INTERRUPTED = 130


class Terminal(logging.Handler):
    """Shows what a run logs. What it does now is one line, which changes in place."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self._line = Live(self._now("Starting."), console=console, transient=True)
        self._line.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Show a log record. What Prefect itself has to say is in the run's last state, too."""
        text, kind = record.getMessage(), getattr(record, "shown", "")
        if kind == NOW["shown"]:
            self._line.update(self._now(text), refresh=True)
        elif kind == STEP["shown"]:
            self._console.print(text, markup=False, highlight=False)
        elif kind == WARNING["shown"]:
            self._console.print(text, style="yellow", markup=False, highlight=False)

    @staticmethod
    def _now(text: str) -> Text:
        return Text(f"… {text}", style="bold", no_wrap=True, overflow="ellipsis")

    def close(self) -> None:
        """Take away the line that changes."""
        self._line.stop()
        super().close()


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Within this block, runs in this process are shown on the terminal. Where standard error is
    none, Prefect's log lines are printed as ever."""
    if not sys.stderr.isatty():
        yield
        return
    from prefect.logging.configuration import setup_logging

    # Prefect sets up its loggers once; what comes later leaves their handlers alone.
    setup_logging()
    logger = logging.getLogger()
    before = logger.handlers[:]
    terminal = Terminal(Console(stderr=True))
    logger.handlers = [terminal]
    TICKS.setLevel(logging.INFO)
    try:
        yield
    finally:
        TICKS.setLevel(logging.NOTSET)
        terminal.close()
        logger.handlers = before


@contextlib.contextmanager
def heeding_ctrl_c(name: str) -> Iterator[None]:
    """Within this block, Ctrl-C lets a run keep what it has done, and says so; then the command
    ends with status 130. A second Ctrl-C ends everything at once.

    Args:
        name: What the run retrains.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, _end)
        _say("\nStopping, as soon as a training has saved a checkpoint. Ctrl-C again: at once.\n")
        raise KeyboardInterrupt

    # A shell without job control starts commands with SIGINT ignored, and means it.
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        kept = getattr(stopped, "kept", "") or "Finished steps are kept."
        _say(f"\n{name}: Stopped. {kept} To go on, start the same command again.\n")
        sys.exit(EXIT_INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, before)


def _end(*_: object) -> None:
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    _say("\nEnded. The next run goes on from the newest checkpoint.\n")
    os._exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    # The signal may have come while another line was written.
    os.write(2, text.encode())
