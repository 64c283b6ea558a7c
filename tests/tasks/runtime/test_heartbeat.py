"""A program that stands still is noticed; one that works is left alone."""

import pytest

from tasks.contracts.errors import Hung
from tasks.runtime import heartbeat


@pytest.mark.parametrize("way", ["fresh"], indirect=True)
class TestProgramThatStandsStill:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(heartbeat, "SECONDS", 0.2)
        monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 2.0)

    def test_is_hung_if_its_counter_stands_still(self, program):
        with pytest.raises(Hung, match=r"no progress for .* while its process lives") as caught:
            program(
                "reporter.progress(step=1); time.sleep(3600)",
                stall_seconds=1.0,
                stall_name="training.stall_minutes",
            )
        assert "raise training.stall_minutes" in caught.value.fix
        assert caught.value.retry_helps

    def test_is_hung_if_its_process_was_stopped(self, program):
        with pytest.raises(Hung, match=r"no sign of life .* its process is stopped"):
            program("os.kill(os.getpid(), signal.SIGSTOP)", grace=1.0)

    def test_is_not_hung_while_its_steps_go_on(self, program):
        body = """
            for _ in range(6):
                time.sleep(0.5)
                reporter.advance()
            return {"done": 1}
            """
        assert program(body, stall_seconds=1.5) == {"done": 1}

    def test_is_not_hung_while_a_library_computes(self, program):
        """As one does that keeps the interpreter's lock: no heartbeat can be sent."""
        body = """
            sys.setswitchinterval(3600)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                pass
            return {"done": 1}
            """
        assert program(body) == {"done": 1}
