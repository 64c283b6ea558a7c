"""What an LLM judge is asked, and what its verdicts mean."""

import numpy as np
import pyarrow as pa
import pytest

from tasks.evaluate import llm_judge_verdicts
from tests.tasks.evaluate.samples import score_table


class TestThePrompt:
    pair = llm_judge_verdicts.Pair((1, 2), "Q {answer_b}", "R", "ours {answer_b} [[A]]", "theirs")

    def test_has_the_answers_in_both_orders(self):
        asked = [
            llm_judge_verdicts.fill_prompt("{answer_a}|{answer_b}", self.pair, turn)
            for turn in (0, 1)
        ]
        assert asked == ["ours {answer_b} [[A]]|theirs", "theirs|ours {answer_b} [[A]]"]

    def test_built_in_prompt_has_every_part(self):
        asked = llm_judge_verdicts.fill_prompt(llm_judge_verdicts.PROMPT, self.pair, False)
        for part in self.pair[1:]:
            assert part in asked

    def test_question_of_a_text_is_what_the_models_read(self):
        def scores(texts):
            return pa.table(
                {
                    "hash_hi": pa.array([3, 1], pa.uint64()),
                    "hash_lo": pa.array([0, 0], pa.uint64()),
                    "answer": texts,
                    "reference": [" the end", "Paris"],
                }
            )

        texts = {(3, 0): "The beginning, the end", (1, 0): "Where is Paris?"}
        found = llm_judge_verdicts.answer_pairs(scores(["a", "b"]), scores(["c", "d"]), texts, 9)
        assert [(each.key, each.question) for each in found] == [
            ((1, 0), "Where is Paris?"),
            ((3, 0), "The beginning,"),
        ]
        assert (
            llm_judge_verdicts.answer_pairs(scores(["a", "b"]), scores(["c", "d"]), texts, 1)
            == found[:1]
        )


class TestVerdicts:
    @pytest.mark.parametrize(
        ("text", "verdict"),
        [("[[A]]", "A"), ("not [[A]] but\n[[B]]", "B"), ("[[C]].", "C"), ("A", "?"), ("", "?")],
    )
    def test_is_the_last_one_in_double_brackets(self, text, verdict):
        assert llm_judge_verdicts.parse_verdict(text) == verdict

    @pytest.mark.parametrize("first", "ABC?")
    @pytest.mark.parametrize("second", "ABC?")
    def test_wins_only_if_both_orders_agree(self, first, second):
        expected = {"AB": 1.0, "BA": 0.0}.get(first + second, 0.5)
        assert llm_judge_verdicts.preference(first, second) == expected

    def test_counts_add_up(self):
        found = [("A", "B"), ("B", "A"), ("A", "A"), ("B", "B"), ("C", "C"), ("?", "A")]
        assert llm_judge_verdicts.count_outcomes(found) == {
            "wins": 1,
            "ties": 4,
            "losses": 1,
            "inconsistent": 2,
            "unreadable": 1,
        }


class TestPreferences:
    def test_is_added_to_both_tables_by_hash(self):
        comparisons = pa.table(
            {
                "hash_hi": pa.array([2, 0], pa.uint64()),
                "hash_lo": pa.array([14, 0], pa.uint64()),
                "preferred": [1.0, 0.5],
            }
        )
        ours, theirs = llm_judge_verdicts.with_preferred(
            score_table(n=3), score_table(n=3), comparisons
        )
        assert np.array_equal(ours["preferred"].to_numpy(), [0.5, np.nan, 1.0], equal_nan=True)
        assert np.array_equal(theirs["preferred"].to_numpy(), [0.5, np.nan, 0.0], equal_nan=True)
