"""What a person at a terminal sees of a run."""

import io
import logging

import pytest
from rich.console import Console

from flows.terminal import Terminal
from tasks.runtime.logs import NOW, STEP, WARNING


@pytest.fixture
def screen():
    """A terminal of 60 columns, and what was written on it."""
    return Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)


def logged(screen, *records):
    """What the terminal shows of log records: messages with their kinds."""
    terminal = Terminal(screen)
    logger = logging.Logger("run")
    logger.addHandler(terminal)
    for message, kind in records:
        logger.info(message, extra=kind)
    terminal.close()
    return screen.file.getvalue()


class TestTerminal:
    def test_keeps_results_and_warnings(self, screen):
        text = logged(screen, ("load: [bold] rows", STEP), ("a label is rare", WARNING))
        assert "load: [bold] rows\n" in text
        assert "a label is rare\n" in text

    def test_shows_what_is_done_now_in_one_line_that_fits(self, screen):
        text = logged(screen, ("Training: step 1 of 9, " + "figures " * 20, NOW))
        assert "… Training: step 1 of 9" in text
        lines = [line.rpartition("\x1b[2K")[2] for line in text.splitlines()]
        assert max(map(len, lines)) <= 60 + len("\x1b[?25h")
        # The line is taken away at the end.
        assert text.rstrip().endswith("\x1b[2K")

    def test_leaves_out_what_prefect_has_to_say(self, screen):
        assert "Beginning" not in logged(screen, ("Beginning flow run", {}))
