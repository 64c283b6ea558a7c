"""What a judge is asked, what its verdicts mean, and what the gate makes of them."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.evaluate import llm_judge_verdicts
from tasks.gate import exact_tests
from tests.tasks.gate.test_decide import judge, reasons, rule, seen
from tests.tasks.gate.test_language import N, evidence, table

BETTER = GateRecipe(metric="preferred", claim="better")


def verdicts(wins, losses, ties, unasked=0):
    """The candidate's shares, well mixed; NaN where the judge was not asked."""
    values = np.repeat([1.0, 0.0, 0.5, np.nan], [wins, losses, ties, unasked])
    return np.random.default_rng(0).permutation(values)


def of_verdicts(wins, losses, ties, unasked=0, **changes):
    shares = verdicts(wins, losses, ties, unasked)
    n = len(shares)
    theirs = {"preferred": 1 - shares}
    return evidence(table(n=n, preferred=shares), table(n=n, **theirs), **changes)


class TestTheQuestion:
    pair = llm_judge_verdicts.Pair((1, 2), "Q {answer_b}", "R", "ours {answer_b} [[A]]", "theirs")

    def test_has_the_answers_in_either_order(self):
        asked = [
            llm_judge_verdicts.filled("{answer_a}|{answer_b}", self.pair, turn) for turn in (0, 1)
        ]
        assert asked == ["ours {answer_b} [[A]]|theirs", "theirs|ours {answer_b} [[A]]"]

    def test_the_built_in_prompt_has_all_of_it(self):
        asked = llm_judge_verdicts.filled(llm_judge_verdicts.PROMPT, self.pair, False)
        for part in self.pair[1:]:
            assert part in asked

    def test_of_a_text_is_what_the_models_were_shown(self):
        def scores(texts):
            return pa.table(
                {
                    "hash_hi": pa.array([3, 1], pa.uint64()),
                    "hash_lo": pa.array([0, 0], pa.uint64()),
                    "said": texts,
                    "reference": [" the end", "Paris"],
                }
            )

        texts = {(3, 0): "The beginning, the end", (1, 0): "Where is Paris?"}
        found = llm_judge_verdicts.pairs_of(scores(["a", "b"]), scores(["c", "d"]), texts, 9)
        assert [(each.key, each.question) for each in found] == [
            ((1, 0), "Where is Paris?"),
            ((3, 0), "The beginning,"),
        ]
        assert (
            llm_judge_verdicts.pairs_of(scores(["a", "b"]), scores(["c", "d"]), texts, 1)
            == found[:1]
        )


class TestTheVerdict:
    @pytest.mark.parametrize(
        ("text", "verdict"),
        [("[[A]]", "A"), ("not [[A]] but\n[[B]]", "B"), ("[[C]].", "C"), ("A", "?"), ("", "?")],
    )
    def test_is_the_last_one_in_its_marks(self, text, verdict):
        assert llm_judge_verdicts.verdict_in(text) == verdict

    @pytest.mark.parametrize("first", "ABC?")
    @pytest.mark.parametrize("second", "ABC?")
    def test_counts_only_where_both_orders_agree(self, first, second):
        expected = {"AB": 1.0, "BA": 0.0}.get(first + second, 0.5)
        assert llm_judge_verdicts.preferred(first, second) == expected

    def test_counts_add_up(self):
        found = [("A", "B"), ("B", "A"), ("A", "A"), ("B", "B"), ("C", "C"), ("?", "A")]
        assert llm_judge_verdicts.counted(found) == {
            "wins": 1,
            "ties": 4,
            "losses": 1,
            "turned": 2,
            "unreadable": 1,
        }


class TestTheColumn:
    def test_goes_to_both_models_by_the_examples_hashes(self):
        comparisons = pa.table(
            {
                "hash_hi": pa.array([2, 0], pa.uint64()),
                "hash_lo": pa.array([14, 0], pa.uint64()),
                "preferred": [1.0, 0.5],
            }
        )
        ours, theirs = llm_judge_verdicts.with_preferred(table(n=3), table(n=3), comparisons)
        assert np.array_equal(ours["preferred"].to_numpy(), [0.5, np.nan, 1.0], equal_nan=True)
        assert np.array_equal(theirs["preferred"].to_numpy(), [0.5, np.nan, 0.0], equal_nan=True)


class TestTheClaim:
    def test_of_being_better_is_the_sign_test_of_wins_and_losses(self):
        claim = rule(judge(of_verdicts(90, 60, 150), BETTER), "better")
        assert claim.passed
        assert claim.p_value == exact_tests.superiority_p(90, 60)
        assert claim.discordant == (90, 60)
        assert (claim.candidate, claim.baseline) == (0.55, 0.45)
        assert claim.difference == pytest.approx(0.1)
        assert claim.sentence.startswith(
            "Share of preferred answers is 0.550 against 0.450 for the baseline: better, beyond"
        )
        assert "90 gained and 60 lost" in claim.sentence

    def test_fails_where_chance_explains_it(self):
        assert judge(of_verdicts(80, 75, 145), BETTER).outcome == "rejected"

    def test_fails_where_all_are_ties(self):
        assert judge(of_verdicts(0, 0, N), BETTER).outcome == "rejected"

    def test_of_being_not_worse_is_tested_exactly(self):
        rules = GateRecipe(metric="preferred", margin=0.1)
        claim = rule(judge(of_verdicts(50, 50, 200), rules), "not worse")
        assert claim.p_value == exact_tests.noninferiority_p(50, 50, N, 0.1)
        assert claim.passed
        assert judge(of_verdicts(40, 70, 190), rules).outcome == "rejected"

    def test_counts_only_what_the_judge_was_asked(self):
        verdict = judge(of_verdicts(90, 60, 50, unasked=400), BETTER)
        assert rule(verdict, "better").examples == 200 == verdict.examples
        few = judge(of_verdicts(30, 10, 20, unasked=400), BETTER)
        assert not rule(few, "enough examples").passed

    def test_leaves_out_what_was_seen(self):
        found = of_verdicts(90, 60, 50, candidate_seen=seen(*range(20)))
        assert rule(judge(found, BETTER), "better").examples == 180


class TestAFloor:
    def test_is_the_mean_of_what_was_asked(self):
        rules = GateRecipe(metric="loss", margin=0.1, floors={"preferred": 0.5})
        floor = rule(judge(of_verdicts(90, 60, 50, unasked=200), rules), "floor")
        assert floor.passed and floor.candidate == pytest.approx(0.575)
        assert floor.examples == 200
        assert 0 <= floor.interval[0] < 0.575 < floor.interval[1] <= 1
        assert judge(of_verdicts(60, 90, 50), rules).outcome == "rejected"


class TestSlices:
    def test_are_compared_by_wins_and_losses(self):
        found = of_verdicts(150, 60, 90)
        group = np.where(found.candidate["preferred"].to_numpy() == 0, "bad", "good")
        found = dataclasses.replace(
            found, candidate=found.candidate.append_column("group", pa.array(group))
        )
        harmed = rule(judge(found, BETTER, ("group",)), "no harm", "group=bad")
        assert (harmed.passed, harmed.vetoes, harmed.discordant) == (False, True, (0, 60))
        assert (harmed.candidate, harmed.baseline) == (0.0, 1.0)


class TestFailsClosed:
    def test_without_a_judge(self):
        assert "lack a column each for preferred" in reasons(
            judge(evidence(table(), table()), BETTER)
        )

    def test_where_nothing_was_asked(self):
        text = reasons(judge(of_verdicts(0, 0, 0, unasked=N), BETTER))
        assert "No answer of the candidate was judged." in text

    def test_where_all_that_was_asked_had_been_seen(self):
        found = of_verdicts(10, 0, 0, unasked=N)
        asked = np.flatnonzero(np.isfinite(found.candidate["preferred"].to_numpy()))
        found = dataclasses.replace(found, candidate_seen=seen(*asked.tolist()))
        assert "was measured by preferred" in reasons(judge(found, BETTER))

    def test_where_a_share_is_none(self):
        found = of_verdicts(100, 100, 100)
        broken = found.candidate.set_column(6, "preferred", pa.array(np.full(N, 3.0)))
        found = dataclasses.replace(found, candidate=broken)
        assert "is not between 0 and 1" in reasons(judge(found, BETTER))
