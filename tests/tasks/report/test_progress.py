"""Training progress."""

from tasks.report.progress import progress_sentence


class TestProgressSentence:
    def test_is_empty_without_figures(self):
        assert progress_sentence({"stage": "loading model"}) == ""

    def test_has_step_and_figures(self):
        line = {"step": 3, "steps": 9, "loss": 0.5, "tokens_per_second": 1234.5}
        assert progress_sentence(line) == "step 3 of 9: loss 0.5000, 1234 tokens/s"
