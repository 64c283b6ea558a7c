"""Comparisons of right and wrong answers."""

import numpy as np
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.gate import exact_rules, exact_tests, power
from tests.tasks.evaluate.samples import N, score_table
from tests.tasks.gate.samples import BETTER, decide_on, paired_labels, rule, score_evidence


class TestAccuracy:
    def test_detectable_gain_is_stated_without_discordant_pairs(self):
        claim = rule(decide_on(paired_labels(both=300), BETTER), "better")
        assert claim.detectable == power.detectable_gain(300, exact_rules.ASSUMED_DISCORDANCE)


class TestScoresOfZeroAndOne:
    @pytest.mark.parametrize(
        ("metric", "task"),
        [("exact_match", "instruction"), ("checks", "completion"), ("accuracy", "preference")],
    )
    def test_is_tested_exactly(self, metric, task):
        ours, theirs = (np.arange(N) % 3 > 0).astype(float), (np.arange(N) % 2).astype(float)
        found = score_evidence(
            score_table(**{metric: ours}), score_table(**{metric: theirs}), task=task
        )
        claim = rule(decide_on(found, GateRecipe(metric=metric, claim="better")), "better")
        assert claim.discordant == (100, 50)
        assert claim.p_value == exact_tests.superiority_p(100, 50, N)
        assert "100 gained and 50 lost" in claim.sentence
        claim = rule(decide_on(found, GateRecipe(metric=metric)), "not worse")
        assert claim.p_value == exact_tests.noninferiority_p(100, 50, N, 0.02)
