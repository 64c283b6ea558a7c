"""A run that is killed goes on where it was, and ends as if nothing had happened."""

import pytest

from tests.faults.kill_trials import Trials


@pytest.mark.slow
class TestInterruptedRun:
    """The promise of the README; `make kill-trials` repeats it 200 times."""

    def test_resumes_and_ends_as_an_undisturbed_one(self, tmp_path, prefect_server):
        trials = Trials(tmp_path, prefect_server)
        assert trials.undisturbed.checkpoints >= 4
        # Killed at a step, and at a write.
        trial = trials.run(44)
        assert trial.problems == []
        assert trial.in_training > 0
