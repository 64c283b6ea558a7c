"""Verdicts on language models by the preferences of an LLM judge."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.gate import exact_tests
from tests.tasks.evaluate.samples import N, score_table
from tests.tasks.gate.samples import decide_on, hashes_of, reasons, rule, score_evidence

BETTER_PREFERRED = GateRecipe(metric="preferred", claim="better")


def preferences(wins, losses, ties, unjudged=0):
    """The candidate's preferences, shuffled; NaN if the LLM judge did not compare the answers."""
    values = np.repeat([1.0, 0.0, 0.5, np.nan], [wins, losses, ties, unjudged])
    return np.random.default_rng(0).permutation(values)


def paired_preferences(wins, losses, ties, unjudged=0, **changes):
    shares = preferences(wins, losses, ties, unjudged)
    n = len(shares)
    theirs = {"preferred": 1 - shares}
    return score_evidence(score_table(n=n, preferred=shares), score_table(n=n, **theirs), **changes)


class TestClaimByPreferences:
    def test_better_is_the_exact_test_of_wins_and_losses(self):
        claim = rule(decide_on(paired_preferences(90, 60, 150), BETTER_PREFERRED), "better")
        assert claim.passed
        assert claim.p_value == exact_tests.superiority_p(90, 60, 300)
        assert claim.discordant == (90, 60)
        assert (claim.candidate, claim.baseline) == (0.55, 0.45)
        assert claim.difference == pytest.approx(0.1)
        assert claim.sentence.startswith(
            "Share of preferred answers is 0.550 against 0.450 for the baseline: significantly "
            "better"
        )
        assert "90 gained and 60 lost" in claim.sentence

    def test_insignificant_wins_are_rejected(self):
        assert decide_on(paired_preferences(80, 75, 145), BETTER_PREFERRED).outcome == "rejected"

    def test_ties_are_rejected(self):
        assert decide_on(paired_preferences(0, 0, N), BETTER_PREFERRED).outcome == "rejected"

    def test_not_worse_is_tested_exactly(self):
        rules = GateRecipe(metric="preferred", margin=0.1)
        claim = rule(decide_on(paired_preferences(50, 50, 200), rules), "not worse")
        assert claim.p_value == exact_tests.noninferiority_p(50, 50, N, 0.1)
        assert claim.passed
        assert decide_on(paired_preferences(40, 70, 190), rules).outcome == "rejected"

    def test_only_judged_answers_count(self):
        verdict = decide_on(paired_preferences(90, 60, 50, unjudged=400), BETTER_PREFERRED)
        assert rule(verdict, "better").examples == 200 == verdict.examples
        few = decide_on(paired_preferences(30, 10, 20, unjudged=400), BETTER_PREFERRED)
        assert not rule(few, "enough examples").passed

    def test_seen_examples_are_excluded(self):
        found = paired_preferences(90, 60, 50, candidate_seen=hashes_of(*range(20)))
        assert rule(decide_on(found, BETTER_PREFERRED), "better").examples == 180


class TestFloorOfPreferences:
    def test_is_compared_with_the_mean_of_judged_answers(self):
        rules = GateRecipe(metric="loss", margin=0.1, floors={"preferred": 0.5})
        floor = rule(decide_on(paired_preferences(90, 60, 50, unjudged=200), rules), "floor")
        assert floor.passed and floor.candidate == pytest.approx(0.575)
        assert floor.examples == 200
        assert 0 <= floor.interval[0] < 0.575 < floor.interval[1] <= 1
        assert decide_on(paired_preferences(60, 90, 50), rules).outcome == "rejected"


class TestSlicesByPreferences:
    def test_are_compared_by_wins_and_losses(self):
        found = paired_preferences(150, 60, 90)
        group = np.where(found.candidate["preferred"].to_numpy() == 0, "bad", "good")
        found = dataclasses.replace(
            found, candidate=found.candidate.append_column("group", pa.array(group))
        )
        harmed = rule(decide_on(found, BETTER_PREFERRED, ("group",)), "no harm", "group=bad")
        assert (harmed.passed, harmed.vetoes, harmed.discordant) == (False, True, (0, 60))
        assert (harmed.candidate, harmed.baseline) == (0.0, 1.0)


class TestInvalidPreferences:
    def test_missing_preferences_reject(self):
        assert "lack or repeat the columns preferred" in reasons(
            decide_on(score_evidence(score_table(), score_table()), BETTER_PREFERRED)
        )

    def test_no_judged_answer_rejects(self):
        text = reasons(decide_on(paired_preferences(0, 0, 0, unjudged=N), BETTER_PREFERRED))
        assert "The LLM judge compared none of the candidate's answers." in text

    def test_judged_answers_that_were_all_seen_reject(self):
        found = paired_preferences(10, 0, 0, unjudged=N)
        asked = np.flatnonzero(np.isfinite(found.candidate["preferred"].to_numpy()))
        found = dataclasses.replace(found, candidate_seen=hashes_of(*asked.tolist()))
        assert "has a value of preferred" in reasons(decide_on(found, BETTER_PREFERRED))

    def test_preference_above_1_rejects(self):
        found = paired_preferences(100, 100, 100)
        broken = found.candidate.set_column(6, "preferred", pa.array(np.full(N, 3.0)))
        found = dataclasses.replace(found, candidate=broken)
        assert "is not between 0 and 1" in reasons(decide_on(found, BETTER_PREFERRED))
