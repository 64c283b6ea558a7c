"""Test rows that belong together."""

import dataclasses

import numpy as np
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.task_tables import GROUP_COLUMN
from tests.tasks.evaluate.samples import label_table, score_table
from tests.tasks.gate.samples import (
    BETTER,
    decide_on,
    label_evidence,
    paired_labels,
    rule,
    score_evidence,
)

N, SIZE = 400, 10


def with_groups(found, groups):
    column = [[str(group) for group in groups]]
    return dataclasses.replace(found, candidate=found.candidate.append_column(GROUP_COLUMN, column))


def gains(groups_gained):
    """Evidence on a candidate that is right on all rows of some groups where the baseline is
    not, and as good elsewhere."""
    group = np.arange(N) // SIZE
    theirs = group >= groups_gained
    return label_evidence(label_table(np.ones(N, bool)), label_table(theirs)), group


class TestGroups:
    def test_a_gain_in_few_of_them_proves_nothing(self):
        found, group = gains(2)
        assert rule(decide_on(found, BETTER), "better").passed
        claim = rule(decide_on(with_groups(found, group), BETTER), "better")
        assert not claim.passed
        assert claim.discordant == (20, 0)
        assert claim.difference == pytest.approx(0.05)

    def test_a_gain_in_many_of_them_does(self):
        found, group = gains(20)
        assert rule(decide_on(with_groups(found, group), BETTER), "better").passed

    def test_of_one_row_each_change_nothing(self):
        found = paired_labels(gained=30, lost=10, both=540, neither=20)
        alone = with_groups(found, [""] * 600)
        own = with_groups(found, range(600))
        plain = decide_on(found, BETTER)
        assert decide_on(alone, BETTER) == decide_on(own, BETTER) == plain

    def test_that_all_agree_need_as_many_as_examples_do(self):
        found = paired_labels(both=600)
        few = with_groups(found, np.arange(600) % 100)
        assert not rule(decide_on(few), "not worse").passed
        enough = with_groups(found, np.arange(600) % 150)
        assert rule(decide_on(enough), "not worse").passed

    def test_are_drawn_together_in_slices(self):
        ours, theirs = np.ones(N, bool), np.ones(N, bool)
        ours[:SIZE] = False  # One group of the first slice.
        group, part = np.arange(N) // SIZE, np.where(np.arange(N) < 100, "a", "b")
        found = label_evidence(label_table(ours, part=part), label_table(theirs))
        assert not rule(decide_on(found, slices=("part",)), "no harm", "part=a").passed
        found = with_groups(found, group)
        assert rule(decide_on(found, slices=("part",)), "no harm", "part=a").passed

    @pytest.mark.parametrize("metric", ["rouge_l", "loss"])
    def test_are_drawn_together_for_scores(self, metric):
        sign = -1 if metric == "loss" else 1
        group = np.arange(300) // 60
        theirs = 0.5 + np.random.default_rng(0).normal(0, 0.01, 300)
        ours = theirs + sign * np.array([0.1, 0.1, -0.05, 0.1, -0.05])[group]
        rules = GateRecipe(metric=metric, claim="better")
        found = score_evidence(score_table(**{metric: ours}), score_table(**{metric: theirs}))
        assert rule(decide_on(found, rules), "better").passed
        assert not rule(decide_on(with_groups(found, group), rules), "better").passed

    def test_are_drawn_together_for_macro_f1(self):
        found, group = gains(2)
        rules = GateRecipe(metric="f1", claim="better")
        assert rule(decide_on(found, rules), "better").passed
        assert not rule(decide_on(with_groups(found, group), rules), "better").passed
        found, group = gains(20)
        assert rule(decide_on(with_groups(found, group), rules), "better").passed
