"""Training progress."""

import threading

from tasks.report import progress
from tasks.report.progress import TrainingProgress, progress_sentence


class TestProgressSentence:
    def test_is_empty_without_figures(self):
        assert progress_sentence({"stage": "loading model"}) == ""

    def test_has_step_and_figures(self):
        line = {"step": 3, "steps": 9, "loss": 0.5, "tokens_per_second": 1234.5}
        assert progress_sentence(line) == "step 3 of 9: loss 0.5000, 1234 tokens/s"

    def test_says_what_memory_is_counted(self):
        assert progress_sentence({"step": 1, "process_memory_mb": 1545.0}) == (
            "step 1 of ?: at most 1545 MB in the process, libraries included"
        )


class TestTrainingProgress:
    def test_does_not_wait_for_an_api_that_is_away(self, monkeypatch):
        asked, answer = threading.Event(), threading.Event()

        def hang(*_, **__):
            asked.set()
            answer.wait(60)

        monkeypatch.setattr(progress, "create_progress_artifact", hang)
        with TrainingProgress() as shown:
            for step in range(1, 4):
                shown.update({"step": step, "steps": 3, "tokens_per_second": step})
            assert asked.wait(60) and not answer.is_set()
            assert shown.tokens_per_second == 3
            answer.set()
