"""Training progress."""

import threading

from tasks.report import progress
from tasks.report.progress import TrainingProgress, progress_sentence
from tasks.runtime.telling import telling


class TestProgressSentence:
    def test_has_step_and_figures(self):
        line = {"step": 3, "steps": 9, "loss": 0.5, "tokens_per_second": 1234.5}
        assert progress_sentence(line) == "step 3 of 9, loss 0.5000, 1,234 tokens/s"

    def test_says_how_long_it_will_take_and_what_is_done(self):
        line = {"step": 3, "steps": 9, "stage": "validation", "loss": 0.5}
        expected = "step 3 of 9, validation, about 40 seconds left, loss 0.5000"
        assert progress_sentence(line, 40.2) == expected

    def test_says_what_memory_is_counted(self):
        assert progress_sentence({"step": 1, "process_memory_mb": 1545.0}) == (
            "step 1 of ?, at most 1,545 MB of memory"
        )


class Page:
    """A listener that notes what it is told of a training."""

    def __init__(self):
        self.told = []

    def training(self, sentence, history):
        self.told.append((sentence, len(history)))


class TestTrainingProgress:
    def test_tells_figures_time_left_and_losses_so_far(self, monkeypatch):
        clock = iter([100.0, 110.0, 120.0])
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
        monkeypatch.setattr(TrainingProgress, "show_bar", lambda self, percent: None)
        page = Page()
        with telling(page), TrainingProgress() as shown:
            shown.update({"step": 0, "steps": 40})
            shown.update({"step": 10, "steps": 40, "loss": 2.0})
            # A line without figures keeps the last ones.
            shown.update({"step": 20, "steps": 40, "stage": "validation"})
        assert page.told == [
            ("Training: step 0 of 40.", 0),
            ("Training: step 10 of 40, about 30 seconds left, loss 2.0000.", 1),
            ("Training: step 20 of 40, validation, about 20 seconds left, loss 2.0000.", 1),
        ]

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
