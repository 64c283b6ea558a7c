"""A first classifier must be of use: better than a constant answer, and blind to no label."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.gate.evidence import NO_BASELINE, UNTRAINED
from tests.tasks.evaluate.samples import label_table
from tests.tasks.gate.samples import RELEASE, decide_on, label_evidence, rule

N = 400


def evidence_of(truth, predicted, baseline=None):
    """Evidence on a first classifier; the untrained head is right by chance."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    labels = tuple(sorted(set(truth.tolist())))
    table = label_table(truth == predicted, truth, predicted)
    if baseline is None:
        guessed = np.random.default_rng(5).choice(labels, len(truth))
        baseline = label_table(truth == guessed, truth, guessed)
    changes = {"candidate_labels": labels, "baseline_labels": labels}
    return label_evidence(table, baseline, **changes)


def majority(verdict):
    """The outcome of the comparison with a constant answer."""
    (found,) = [each for each in verdict.rules if "always answering" in each.name]
    return found


class TestMajority:
    def test_a_model_that_always_answers_one_label_is_rejected(self):
        truth = np.array(["news"] * 360 + ["sport"] * 40)
        verdict = decide_on(evidence_of(truth, np.full(N, "news")), baseline=UNTRAINED)
        assert verdict.outcome == "rejected"
        assert majority(verdict).p_value == 1.0
        assert "accuracy better than always answering 'news'" in verdict.summary

    @pytest.mark.parametrize(("right", "outcome"), [(380, "promoted"), (330, "rejected")])
    def test_it_must_be_beaten_significantly(self, right, outcome):
        truth = np.array(["news"] * 320 + ["sport"] * 80)
        predicted = truth.copy()
        # Wrong answers are spread over both labels, so that each is recognized.
        wrong = np.random.default_rng(2).permutation(N)[: N - right]
        predicted[wrong] = np.where(truth[wrong] == "news", "sport", "news")
        verdict = decide_on(evidence_of(truth, predicted), baseline=UNTRAINED)
        assert verdict.outcome == outcome
        assert majority(verdict).baseline == 0.8

    def test_the_recipes_metric_decides(self):
        # Rare label found, at the price of accuracy: of use by macro F1, not by accuracy.
        truth = np.array(["news"] * 360 + ["sport"] * 40)
        predicted = np.where(np.arange(N) >= 315, "sport", "news")
        found = evidence_of(truth, predicted)
        assert not majority(decide_on(found, GateRecipe(), baseline=UNTRAINED)).passed
        assert majority(decide_on(found, GateRecipe(metric="f1"), baseline=UNTRAINED)).passed

    def test_floors_alone_do_not_release_a_constant(self):
        truth = np.array(["news"] * 360 + ["sport"] * 40)
        predicted = np.full(N, "news")
        found = label_evidence(label_table(truth == predicted, truth, predicted))
        rules = GateRecipe(first_run="floors", floors={"accuracy": 0.8})
        verdict = decide_on(found, rules, baseline=NO_BASELINE)
        assert verdict.outcome == "rejected" and not majority(verdict).passed

    def test_a_later_candidate_is_compared_with_the_deployed_model_only(self):
        truth = np.array(["news", "sport"] * 200)
        found = evidence_of(truth, truth, label_table(np.ones(N, bool), truth, truth))
        names = [each.name for each in decide_on(found, baseline=RELEASE).rules]
        assert not [name for name in names if "always" in name]


class TestRecognizedLabels:
    @pytest.mark.parametrize(("examples", "outcome"), [(9, "promoted"), (10, "rejected")])
    def test_a_label_with_ten_examples_must_be_recognized_once(self, examples, outcome):
        truth = np.array(["news", "sport"] * 200)
        truth[:examples] = "Sport"
        predicted = np.where(truth == "Sport", "sport", truth)
        verdict = decide_on(evidence_of(truth, predicted), baseline=UNTRAINED)
        assert verdict.outcome == outcome
        if outcome == "rejected":
            blind = rule(verdict, "floor", "label=Sport")
            assert blind.candidate == 0 and "None of the 10" in blind.sentence
            assert "recall on the label 'Sport' above 0" in verdict.summary
