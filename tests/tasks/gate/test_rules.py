"""The claim, the floors, the budgets and the summary."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.gate import (
    exact_tests,
)
from tests.tasks.evaluate.samples import LABELS, label_table
from tests.tasks.gate.samples import (
    BETTER,
    EQUAL,
    decide_on,
    hashes_of,
    label_evidence,
    paired_labels,
    rule,
)


class TestNotWorse:
    def test_equally_good_candidate_is_promoted(self):
        verdict = decide_on(paired_labels(gained=5, lost=3, both=314, neither=12))
        claim = rule(verdict, "not worse")
        assert verdict.outcome == "promoted"
        assert claim.p_value == exact_tests.noninferiority_p(5, 3, 334, 0.02)
        assert claim.interval == exact_tests.difference_interval(5, 3, 334, 0.9)
        assert claim.discordant == (5, 3)
        assert claim.difference == pytest.approx(2 / 334)

    def test_sentence_states_all_numbers(self):
        verdict = decide_on(paired_labels(gained=5, lost=3, both=314, neither=12))
        assert rule(verdict, "not worse").sentence == (
            "Accuracy is 0.955 against 0.949 for the baseline: not worse by more than 0.02 "
            "(difference +0.006, 90% interval −0.009 to +0.023, p = 0.0058, 334 examples, 5 gained "
            "and 3 lost). An equally good candidate passes with 66% probability; 80% takes about "
            "371 examples."
        )

    def test_candidate_that_may_be_worse_by_the_margin_is_rejected(self):
        verdict = decide_on(paired_labels(gained=10, lost=20, both=560, neither=10))
        assert verdict.outcome == "rejected"
        assert "a drop of more than 0.02 cannot be ruled out" in verdict.rules[1].sentence
        assert "the p-value must be at most 0.05" in verdict.rules[1].sentence

    def test_wider_margin_lets_it_pass(self):
        found = paired_labels(gained=10, lost=20, both=560, neither=10)
        assert decide_on(found, GateRecipe(margin=0.06)).outcome == "promoted"

    def test_sentence_says_when_examples_are_too_few_for_the_margin(self):
        claim = rule(decide_on(paired_labels(both=120)), "not worse")
        assert not claim.passed
        assert "even two models that always agree could not show it: that takes 149" in (
            claim.sentence
        )


class TestBetter:
    def test_candidate_with_many_more_gains_is_promoted(self):
        verdict = decide_on(paired_labels(gained=30, lost=10, both=540, neither=20), BETTER)
        assert verdict.outcome == "promoted"
        assert rule(verdict, "better").p_value == exact_tests.superiority_p(30, 10, 600)
        assert "significantly better" in rule(verdict, "better").sentence

    @given(st.integers(0, 60))
    @settings(max_examples=20)
    def test_ties_do_not_prove_better(self, discordant):
        verdict = decide_on(
            paired_labels(gained=discordant, lost=discordant, both=600 - 2 * discordant), BETTER
        )
        assert verdict.outcome == "rejected"
        assert rule(verdict, "better").difference == 0

    def test_a_few_more_gains_than_losses_are_not_significant(self):
        verdict = decide_on(paired_labels(gained=14, lost=10, both=576), BETTER)
        assert verdict.outcome == "rejected"
        assert "not significantly better" in rule(verdict, "better").sentence

    def test_higher_confidence_needs_more_evidence(self):
        found = paired_labels(gained=24, lost=10, both=566)
        assert decide_on(found, BETTER).outcome == "promoted"
        strict = GateRecipe(claim="better", confidence=0.999)
        assert decide_on(found, strict).outcome == "rejected"

    @given(st.integers(0, 40), st.integers(0, 40))
    @settings(max_examples=20)
    def test_swapping_the_models_flips_the_sign(self, gained, lost):
        found = paired_labels(gained=gained, lost=lost, both=200)
        swapped = dataclasses.replace(found, candidate=found.baseline, baseline=found.candidate)
        one, other = (rule(decide_on(e, BETTER), "better") for e in (found, swapped))
        assert one.difference == -other.difference
        assert one.discordant == other.discordant[::-1]
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-7)
        assert not (one.passed and other.passed)


class TestFloors:
    def test_candidate_above_every_floor_is_promoted(self):
        rules = GateRecipe(floors={"accuracy": 0.95, "f1": 0.9})
        verdict = decide_on(paired_labels(**EQUAL), rules)
        assert verdict.outcome == "promoted"
        accuracy, f1 = (r for r in verdict.rules if r.rule == "floor")
        assert accuracy.interval == exact_tests.wilson_interval(570, 600)
        assert accuracy.sentence == (
            "Accuracy is 0.950, at least the floor of 0.95 (95% interval 0.930 to 0.965, "
            "600 examples)."
        )
        assert f1.interval[0] < f1.candidate < f1.interval[1]

    def test_candidate_below_a_floor_is_rejected_even_if_it_is_better(self):
        found = paired_labels(gained=200, both=300, neither=100)
        verdict = decide_on(found, GateRecipe(claim="better", floors={"accuracy": 0.9}))
        assert rule(verdict, "better").passed
        assert verdict.outcome == "rejected"
        assert "below the floor" in rule(verdict, "floor").sentence

    def test_near_miss_is_shown_with_enough_digits(self):
        found = paired_labels(both=8999, neither=1001)
        sentence = rule(decide_on(found, GateRecipe(floors={"accuracy": 0.9})), "floor").sentence
        assert "is 0.8999, below the floor of 0.9 " in sentence

    @given(st.integers(0, 200), st.integers(0, 200), st.sampled_from(["accuracy", "recall", "f1"]))
    @settings(max_examples=25, deadline=None)
    def test_higher_floor_never_turns_a_rejection_into_a_promotion(self, both, gained, metric):
        found = paired_labels(both=both, gained=gained, neither=100)
        outcomes = [
            decide_on(found, GateRecipe(floors={metric: floor})).outcome
            for floor in (0.4, 0.6, 0.8)
        ]
        assert sorted(outcomes) == outcomes

    def test_examples_of_new_labels_count_for_floors(self):
        labels = ["news", "sport", "weather"] * 200
        right = np.array(labels) != "weather"
        found = label_evidence(
            label_table(right, labels),
            label_table(right, labels),
            candidate_labels=(*LABELS, "weather"),
        )
        floor = rule(decide_on(found, GateRecipe(floors={"accuracy": 0.9})), "floor")
        assert floor.candidate == pytest.approx(2 / 3)
        assert floor.examples == 600


class TestBudgets:
    @pytest.mark.parametrize(("latency", "passed"), [(4.0, True), (5.0, True), (5.1, False)])
    def test_latency(self, latency, passed):
        found = paired_labels({"latency_ms": latency}, **EQUAL)
        verdict = decide_on(found, GateRecipe(max_latency_ms=5))
        assert (verdict.outcome == "promoted") == passed
        assert rule(verdict, "budget").sentence == (
            f"The latency is {latency:.1f} ms per example, {'within' if passed else 'above'} the "
            "budget of 5 ms per example."
        )

    @pytest.mark.parametrize("latency", [None, np.nan, np.inf, 0.0])
    def test_latency_that_was_not_measured_rejects(self, latency):
        verdict = decide_on(
            paired_labels({"latency_ms": latency}, **EQUAL), GateRecipe(max_latency_ms=5)
        )
        assert verdict.outcome == "rejected"
        assert "was not measured" in rule(verdict, "budget").sentence

    @pytest.mark.parametrize(("limit", "passed"), [(90, True), (89.99, False)])
    def test_size(self, limit, passed):
        verdict = decide_on(paired_labels(**EQUAL), GateRecipe(max_size_mb=limit))
        assert (verdict.outcome == "promoted") == passed
        assert rule(verdict, "budget").candidate == 90

    def test_without_a_budget_there_is_no_rule(self):
        assert not [r for r in decide_on(paired_labels(**EQUAL)).rules if r.rule == "budget"]


class TestEnoughExamples:
    def test_too_few_examples_reject(self):
        found = paired_labels({"baseline_seen": hashes_of(*range(550))}, gained=60, both=540)
        verdict = decide_on(found, GateRecipe(margin=0.2))
        enough = rule(verdict, "enough examples")
        assert not enough.passed
        assert "50 test examples count, but at least 150 are required" in enough.sentence
        assert verdict.outcome == "rejected"

    def test_sentence_says_when_training_data_is_unknown(self):
        verdict = decide_on(paired_labels({"baseline_seen": None}, **EQUAL))
        assert verdict.baseline_seen == "unknown"
        assert "The training data of the baseline is unknown" in (
            rule(verdict, "enough examples").sentence
        )
        assert decide_on(paired_labels(**EQUAL)).baseline_seen == "known"


class TestSummary:
    def test_names_the_claim(self):
        assert decide_on(paired_labels(**EQUAL)).summary == (
            "Promoted against release 7 on 600 examples: accuracy not worse than the baseline by "
            "more than 0.02."
        )

    def test_names_every_failed_rule(self):
        rules = GateRecipe(floors={"accuracy": 0.99}, max_size_mb=1)
        assert decide_on(paired_labels(**EQUAL), rules).summary == (
            "Rejected against release 7 on 600 examples. Failed: accuracy at least 0.99; "
            "size at most 1 MB."
        )

    def test_gives_the_reason_for_unusable_evidence(self):
        assert decide_on(paired_labels()).summary.startswith(
            "Rejected against release 7: The candidate has no answers: the test set is empty."
        )

    def test_states_how_often_the_test_set_was_used(self):
        assert "has now been used for" not in decide_on(paired_labels(**EQUAL)).summary
        verdict = decide_on(paired_labels(**EQUAL), look_number=4)
        assert "This test set has now served 4 verdicts" in verdict.summary
        assert verdict.look_number == 4
