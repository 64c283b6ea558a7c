"""The rules on slices."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.gate import exact_tests
from tests.tasks.evaluate.samples import LABELS, N, label_table, score_table
from tests.tasks.gate.samples import (
    EQUAL,
    LOSS,
    decide_on,
    hashes_of,
    label_evidence,
    paired_labels,
    paired_losses,
    paired_outcomes,
    rule,
    score_evidence,
)


class TestSlicesOfLabels:
    def found(self, lost, size=200, gained=0, groups=5):
        """Equal models, but for one group of five; `gained` makes up for it in the others."""
        n = size * groups
        group = np.repeat([f"g{i}" for i in range(groups)], size)
        ours, theirs = np.ones(n, bool), np.ones(n, bool)
        ours[:lost] = False
        theirs[size : size + gained] = False
        return label_evidence(label_table(ours, group=group), label_table(theirs))

    def test_significant_regression_on_one_slice_vetoes(self):
        verdict = decide_on(self.found(12, gained=12), slices=("group",))
        harmed = rule(verdict, "no harm", "group=g0")
        assert rule(verdict, "not worse").passed
        assert (harmed.passed, harmed.vetoes) == (False, True)
        assert harmed.p_value == pytest.approx(5 * exact_tests.superiority_p(12, 0, 200))
        assert verdict.outcome == "rejected"
        assert "On group g0, accuracy is 0.940 against 1.000 for the baseline: significantly" in (
            harmed.sentence
        )

    def test_insignificant_drop_does_not_veto(self):
        verdict = decide_on(self.found(5, gained=5), slices=("group",))
        outcome = rule(verdict, "no harm", "group=g0")
        assert (outcome.passed, outcome.vetoes) == (True, True)
        assert outcome.p_value > 0.05 > 0.5**5
        assert verdict.outcome == "promoted"
        assert "with 80% probability" in outcome.sentence

    def test_slice_that_is_too_small_to_tell_does_not_veto(self):
        ours, theirs = paired_outcomes(both=600)
        ours[0] = False
        group = np.array(["rare"] * 10 + ["common"] * 590)
        verdict = decide_on(
            label_evidence(label_table(ours, group=group), label_table(theirs)), slices=("group",)
        )
        outcome = rule(verdict, "no harm", "group=rare")
        assert (outcome.passed, outcome.vetoes) == (True, False)
        assert "too small to tell" in outcome.sentence
        assert verdict.outcome == "promoted"

    def test_small_slice_that_collapses_vetoes(self):
        ours, theirs = paired_outcomes(both=600)
        ours[:10] = False
        theirs[300:310] = False
        group = np.array(["rare"] * 10 + ["common"] * 590)
        verdict = decide_on(
            label_evidence(label_table(ours, group=group), label_table(theirs)), slices=("group",)
        )
        assert rule(verdict, "no harm", "group=rare").vetoes
        assert verdict.outcome == "rejected"

    def test_recipe_can_turn_the_veto_off(self):
        rules = GateRecipe(slice_veto=False)
        verdict = decide_on(self.found(12, gained=12), rules, ("group",))
        harmed = rule(verdict, "no harm", "group=g0")
        assert (harmed.passed, harmed.vetoes) == (False, False)
        assert "reported but does not veto" in harmed.sentence
        assert verdict.outcome == "promoted"

    def test_lengths_are_divided_at_the_terciles(self):
        verdict = decide_on(paired_labels(**EQUAL), slices=("length",))
        cut = [r for r in verdict.rules if r.rule == "no harm"]
        assert [r.slice for r in cut] == ["length=short", "length=medium", "length=long"]
        assert [r.examples for r in cut] == [200, 200, 200]
        assert cut[0].sentence.startswith("On short texts (up to 24 tokens), accuracy is 0.940")

    def test_texts_of_equal_length_are_one_slice(self):
        ours, theirs = paired_outcomes(**EQUAL)
        found = label_evidence(label_table(ours), label_table(theirs))
        same = found.candidate.set_column(6, "length", pa.array([9] * 600, pa.int32()))
        verdict = decide_on(dataclasses.replace(found, candidate=same), slices=("length",))
        assert [r.slice for r in verdict.rules if r.rule == "no harm"] == ["length=short"]

    def test_slice_whose_examples_were_all_seen_rejects(self):
        group = np.array(["rare"] * 10 + ["common"] * 590)
        right = np.ones(600, bool)
        changes = {"candidate_seen": hashes_of(*range(10))}
        found = label_evidence(label_table(right, group=group), label_table(right), **changes)
        verdict = decide_on(found, slices=("group",))
        assert verdict.outcome == "rejected"
        assert "A model saw every test example of group rare" in (
            rule(verdict, "error", "group=rare").sentence
        )
        relaxed = decide_on(found, GateRecipe(slice_veto=False), ("group",))
        assert relaxed.outcome == "promoted"

    def test_label_without_examples_is_reported_and_does_not_veto(self):
        labels = (*LABELS, "weather")
        changes = {"candidate_labels": labels, "baseline_labels": labels}
        verdict = decide_on(paired_labels(changes, **EQUAL), slices=("label",))
        outcome = rule(verdict, "no harm", "label=weather")
        assert (outcome.passed, outcome.vetoes, outcome.examples) == (True, False, 0)
        assert verdict.outcome == "promoted"

    def test_empty_values_are_a_slice(self):
        ours, theirs = paired_outcomes(**EQUAL)
        author = pa.array([None] * 300 + ["ann"] * 300, pa.string())
        verdict = decide_on(
            label_evidence(label_table(ours, author=author), label_table(theirs)),
            slices=("author",),
        )
        assert rule(verdict, "no harm", "author=(none)").examples == 300


class TestSlicesOfLosses:
    def found(self, worse=0.0, **changes):
        draw = np.random.default_rng(3)
        group = np.repeat(["a", "b", "c"], 100)
        theirs = draw.lognormal(0.8, 0.3, N)
        ours = theirs + 0.1 * draw.normal(size=N) - 0.1
        ours[group == "b"] += worse
        return score_evidence(
            score_table(np.maximum(ours, 0.01), group=group), score_table(theirs), **changes
        )

    def test_significant_regression_on_one_slice_vetoes(self):
        verdict = decide_on(self.found(worse=0.2), LOSS, ("group",))
        harmed = rule(verdict, "no harm", "group=b")
        assert rule(verdict, "not worse").passed
        assert (harmed.passed, harmed.vetoes, harmed.metric) == (False, True, "loss")
        assert verdict.outcome == "rejected"
        assert "nats per token for the baseline: significantly worse" in harmed.sentence

    def test_slices_that_are_not_worse_do_not_veto(self):
        verdict = decide_on(self.found(), LOSS, ("group", "length"))
        assert verdict.outcome == "promoted"
        assert len([r for r in verdict.rules if r.rule == "no harm"]) == 6
        assert "detects a rise of 0.0" in rule(verdict, "no harm", "group=a").sentence

    def test_slice_that_is_too_small_to_tell_is_reported(self):
        found = paired_losses(spread=1.5)
        group = np.array(["rare"] * 6 + ["common"] * (N - 6))
        found = dataclasses.replace(
            found, candidate=found.candidate.append_column("group", pa.array(group))
        )
        outcome = rule(decide_on(found, LOSS, ("group",)), "no harm", "group=rare")
        assert (outcome.passed, outcome.vetoes) == (True, False)
        assert "too small to tell" in outcome.sentence

    def test_slice_without_tokens_does_not_veto(self):
        found = self.found()
        tokens = pa.array(np.repeat([0, 5, 5], 100), pa.int32())
        found = dataclasses.replace(
            found,
            candidate=found.candidate.set_column(4, "tokens", tokens),
            baseline=found.baseline.set_column(4, "tokens", tokens),
        )
        outcome = rule(decide_on(found, LOSS, ("group",)), "no harm", "group=a")
        assert (outcome.passed, outcome.vetoes) == (True, False)
