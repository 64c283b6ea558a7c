"""Verdicts on classifiers."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.evaluate import metrics
from tasks.gate import (
    exact_tests,
)
from tests.tasks.evaluate.samples import label_table
from tests.tasks.gate.samples import BETTER, decide_on, label_evidence, paired_labels, reasons, rule


class TestF1:
    def test_is_compared_by_the_bootstrap(self):
        found = paired_labels(gained=10, lost=9, both=560, neither=21)
        claim = rule(decide_on(found, GateRecipe(metric="f1", margin=0.05)), "not worse")
        assert claim.passed
        assert claim.candidate == pytest.approx(metrics.metrics_of(found.candidate)["f1"])
        assert claim.baseline == pytest.approx(metrics.metrics_of(found.baseline)["f1"])
        assert claim.sentence.startswith("Macro F1 is 0.950 against 0.948 for the baseline")
        assert 0 < claim.detectable < 0.05


class TestNewLabels:
    LABELS = ("news", "sport", "weather")

    def found(self, weather_right, weather=100, **changes):
        """Equal models on 300 old examples; the candidate alone knows weather."""
        labels = ["news", "sport", "news"] * 100 + ["weather"] * weather
        ours = np.r_[np.ones(300, bool), np.arange(weather) < weather_right]
        theirs = np.r_[np.ones(300, bool), np.zeros(weather, bool)]
        changes = {"candidate_labels": self.LABELS, **changes}
        return label_evidence(label_table(ours, labels), label_table(theirs, labels), **changes)

    def test_new_label_above_its_floor_is_promoted(self):
        verdict = decide_on(self.found(80))
        assert verdict.outcome == "promoted"
        floor = rule(verdict, "floor", "label=weather")
        assert (floor.metric, floor.candidate, floor.examples) == ("recall", 0.8, 100)
        assert floor.interval == exact_tests.wilson_interval(80, 100)
        assert floor.sentence.startswith("Recall on the new label weather is 0.800, at least")

    def test_new_label_below_its_floor_is_rejected(self):
        verdict = decide_on(self.found(40))
        assert verdict.outcome == "rejected"
        assert not rule(verdict, "floor", "label=weather").passed

    def test_new_labels_are_not_part_of_the_claim(self):
        verdict = decide_on(self.found(100), BETTER)
        assert rule(verdict, "better").discordant == (0, 0)
        assert rule(verdict, "better").examples == verdict.examples == 300

    def test_new_labels_are_not_compared_as_slices(self):
        verdict = decide_on(self.found(80), slices=("label",))
        assert [r.slice for r in verdict.rules if r.rule == "no harm"] == [
            "label=news",
            "label=sport",
        ]

    def test_baseline_loss_on_new_labels_does_not_matter(self):
        found = self.found(80)
        losses = np.where(np.arange(400) < 300, 0.5, np.inf)
        theirs = found.baseline.set_column(5, "loss", pa.array(losses))
        assert decide_on(dataclasses.replace(found, baseline=theirs)).outcome == "promoted"

    def test_new_label_without_examples_is_rejected_unless_its_floor_is_0(self):
        found = self.found(0, weather=0)
        verdict = decide_on(found)
        assert verdict.outcome == "rejected"
        assert "nothing shows that the candidate learned it" in (
            rule(verdict, "floor", "label=weather").sentence
        )
        assert decide_on(found, GateRecipe(new_label_floor=0)).outcome == "promoted"

    def test_examples_of_new_labels_do_not_count_towards_the_minimum(self):
        rules = GateRecipe(min_examples=350)
        assert not rule(decide_on(self.found(80), rules), "enough examples").passed


class TestInvalidScores:
    @given(
        st.sampled_from(["candidate", "baseline"]),
        st.integers(0, 599),
        st.sampled_from([np.nan, np.inf, -np.inf]),
        st.sampled_from(["better", "not worse"]),
        st.sampled_from(["accuracy", "f1"]),
    )
    @settings(max_examples=30)
    def test_loss_that_is_not_a_number_never_promotes(self, model, row, value, claim, metric):
        found = paired_labels(gained=60, both=540)
        broken = getattr(found, model)
        losses = broken.column("loss").to_numpy().copy()
        losses[row] = value
        broken = broken.set_column(5, "loss", pa.array(losses))
        verdict = decide_on(
            dataclasses.replace(found, **{model: broken}), GateRecipe(claim=claim, metric=metric)
        )
        assert f"The {model}'s loss is not a finite number on 1 test example." in reasons(verdict)

    def test_missing_loss_is_not_a_number(self):
        found = paired_labels(gained=60, both=540)
        losses = pa.array([None] + [0.1] * 599, pa.float64())
        broken = found.candidate.set_column(5, "loss", losses)
        assert "loss is not a finite number" in reasons(
            decide_on(dataclasses.replace(found, candidate=broken))
        )

    def test_mean_loss_that_overflows_rejects(self):
        found = paired_labels(gained=60, both=540)
        broken = found.candidate.set_column(5, "loss", pa.array([1e308] * 600))
        assert "mean loss" in reasons(decide_on(dataclasses.replace(found, candidate=broken)))

    def test_different_true_labels_reject(self):
        right = np.ones(200, bool)
        found = label_evidence(label_table(right), label_table(right, labels=["sport"] * 200))
        assert "scored against different labels" in reasons(decide_on(found))

    def test_column_correct_that_contradicts_predictions_rejects(self):
        found = paired_labels(gained=60, both=500, neither=40)
        flattered = found.candidate.set_column(4, "correct", pa.array([True] * 600))
        text = reasons(decide_on(dataclasses.replace(found, candidate=flattered)))
        assert "column correct contradicts its predictions" in text

    def test_prediction_of_an_unknown_label_rejects(self):
        found = paired_labels(gained=60, both=500, neither=40)
        text = reasons(decide_on(dataclasses.replace(found, candidate_labels=("news",))))
        assert "does not have: sport" in text

    def test_baseline_without_any_label_of_the_test_set_rejects(self):
        found = paired_labels({"baseline_labels": ("weather",)}, gained=60, both=540)
        assert "has a label that the baseline knows" in reasons(decide_on(found))
