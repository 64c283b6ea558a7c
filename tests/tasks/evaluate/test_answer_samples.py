"""Which answers the report shows side by side."""

import numpy as np

from tasks.evaluate import answer_samples
from tests.tasks.evaluate.samples import score_table


class TestSamples:
    def tables(self):
        written = {
            name: score_table(
                n=20,
                generated=[f"{name} {row}" for row in range(20)],
                reference=[f"right {row}" for row in range(20)],
                rouge_l=values,
            )
            for name, values in (
                ("ours", np.where(np.arange(20) == 9, 1.0, 0.5)),
                ("theirs", np.where(np.arange(20) == 4, 0.9, 0.5)),
            )
        }
        texts = {(row, row * 7): f"prompt {row} <b>|" for row in range(20)}
        return written["ours"], written["theirs"], texts

    def test_half_differ_most_and_the_others_are_the_first_ones(self):
        ours, theirs, texts = self.tables()
        found = answer_samples.sample_answers(ours, theirs, texts, n=5)
        assert [row.candidate for row in found] == [
            "ours 9",
            "ours 4",
            "ours 0",
            "ours 1",
            "ours 2",
        ]
        assert found[0] == ("prompt 9 \\<b\\>|", "right 9", "theirs 9", "ours 9")

    def test_baseline_is_optional(self):
        ours, _, texts = self.tables()
        found = answer_samples.sample_answers(ours, None, texts, n=2)
        assert [(row.baseline, row.candidate) for row in found] == [("", "ours 0"), ("", "ours 1")]

    def test_without_generated_answers_there_are_none(self):
        assert answer_samples.sample_answers(score_table(), None, {}) == []

    def test_long_texts_are_shortened(self):
        long = answer_samples.readable("word\n" * 100)
        assert len(long) <= answer_samples.MAX_CHARACTERS
        assert long.endswith("…")
        assert "\n" not in long
