"""Whatever ends a run, its state and its report say so, and say what consumers see."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime

import psutil
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelling

from flows import endings
from tasks.release import delivery
from tests.flows.conftest import Place, report_of, training_programs
from tests.waiting import wait_for

LOSE_THE_EXCEPTION = """
from prefect.utilities import engine
engine._prefect_sigterm_handler = lambda *_: None
"""


class Command:
    """`burnish retrain` in a process of its own, which trains for a long time.

    Args:
        place: Where it runs.
        before: Code that runs first.
    """

    def __init__(self, place: Place, before: str = "") -> None:
        recipe = place.folder / "recipe.yaml"
        changes = {"training__epochs": 1000, "training__checkpoint_minutes": 0.01}
        values = place.recipe(name="stopped", **changes).model_dump(mode="json")
        recipe.write_text(yaml.safe_dump(values))
        self.began = datetime.now(UTC)
        # A shell that starts the tests in the background has them, and this, ignore Ctrl-C.
        heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        code = f"{heed}\n{before}\nfrom flows.cli import main\nmain(['retrain', {str(recipe)!r}])\n"
        self.output = place.folder / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code)],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(lambda: training_programs(self.process.pid), "training")

    @property
    def run(self):
        """The flow run."""
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    name={"like_": "stopped-"}, start_time={"after_": self.began}
                ),
                sort=FlowRunSort.START_TIME_DESC,
                limit=1,
            )[0]

    def stop(self, number: int = signal.SIGTERM):
        """Send a signal; returns the run's last state."""
        self.process.send_signal(number)
        self.process.wait(60)
        state = self.run.state
        state.state_details.flow_run_id = self.run.id
        return state


@pytest.mark.slow
class TestSigterm:
    def test_makes_the_run_crashed_and_its_report_says_preempted(self, empty_place):
        state = Command(empty_place).stop()
        assert state.name == "Crashed"
        report = report_of(state)
        assert report.startswith("# stopped: Crashed")
        assert "**Cause:** preempted" in report
        assert "Nothing was published by this run. Deployed: nothing yet." in report

    def test_reaches_training_even_if_its_exception_is_lost(self, empty_place):
        state = Command(empty_place, LOSE_THE_EXCEPTION).stop()
        assert state.name == "Crashed"
        assert "**Cause:** preempted" in report_of(state)

    def test_of_a_run_that_is_being_cancelled_makes_it_cancelled(self, empty_place):
        command = Command(empty_place)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(command.run.id, Cancelling(), force=True)
        state = command.stop()
        assert state.name == "Cancelled"
        report = report_of(state)
        assert report.startswith("# stopped: Cancelled")
        assert "**Cause:** cancelled" in report


@pytest.mark.slow
class TestCtrlC:
    def test_keeps_a_checkpoint_and_says_how_to_go_on(self, empty_place):
        command = Command(empty_place)
        kept = empty_place.store.objects
        wait_for(lambda: kept.sizes("checkpoints/"), "a checkpoint")
        state = command.stop(signal.SIGINT)
        assert state.name == "Crashed"
        assert "SIGINT, as by Ctrl-C" in report_of(state)
        assert command.process.returncode == 130
        said = command.output.read_text()
        assert "Stopping, as soon as a training has saved a checkpoint" in said
        assert re.search(
            r"stopped: Stopped\. The training reached step (\d+) of \d+; the next run goes on from "
            r"the checkpoint of step \1\. To go on, start the same command again\.",
            said,
        )
        assert "Traceback" not in said

    def test_pressed_twice_ends_everything_at_once(self, empty_place):
        command = Command(empty_place)
        below = psutil.Process(command.process.pid).children(recursive=True)
        # The training cannot save anything in time.
        for trainer in training_programs(command.process.pid):
            trainer.suspend()
        command.process.send_signal(signal.SIGINT)
        wait_for(lambda: "Stopping" in command.output.read_text(), "the answer")
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(60) == 130
        psutil.wait_procs(below, timeout=60)
        assert not [each for each in below if each.is_running()]


class TestOwedEvents:
    def test_are_a_warning_of_the_report(self, place, monkeypatch):
        def away(*_):
            raise ConnectionError("no route to the API")

        monkeypatch.setattr(delivery, "send", away)
        state = place.run(name="second")
        assert state.name == "Released"
        version = place.log("second")[-1].release.version
        assert f"The event of version {version} has not reached Prefect" in report_of(state)

    def test_are_no_warning_once_they_are_delivered(self, place):
        assert "has not reached Prefect" not in report_of(place.run(name="second"))


class TestIsCancelling:
    def test_is_false_if_prefect_cannot_be_asked(self, monkeypatch):
        def away(*_, **__):
            raise ConnectionError

        monkeypatch.setattr(endings, "brief_client", away)
        assert not endings.is_cancelling("4f0d6c1e-30a5-4f0b-8a4b-1a0a1b5a1d2e")
