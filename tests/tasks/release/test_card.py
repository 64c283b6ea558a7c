"""The model card: what someone who finds the release reads."""

from __future__ import annotations

from tasks.release.card import model_card
from tests.tasks.release.conftest import OPTIONAL


class TestCard:
    def test_shows_optional_results(self, inputs):
        card = model_card(inputs(**OPTIONAL))
        assert "`guard.jsonl` (digest `of guard`), 20 examples" in card
        assert "The LLM judge `wise` preferred its answers 10 times" in card
        assert "| ships | acc | 0.2500 | 0.5000 | 9 |" in card

    def test_omits_optional_results_that_there_are_none_of(self, inputs):
        card = model_card(inputs())
        assert "judge" not in card.split("## Data")[0] and "Benchmarks" not in card
