"""What the gate withstands, with few trials: `make gate-simulation` draws thousands.

Beside each bound stands what happens without the rule that keeps it, so that a rule that no longer
works is seen.
"""

import numpy as np
import pytest

from tests.benchmarks import gate_conditions as conditions
from tests.benchmarks import gate_over_time as over_time

pytestmark = pytest.mark.slow


def rate(draw, trials, **settings):
    random = np.random.default_rng(conditions.SEED)
    return sum(draw(random, **settings) for _ in range(trials)) / trials


class TestOverTime:
    def test_losses_within_the_margin_add_up_without_the_anchor_only(self):
        assert rate(over_time.decline, 20, n=1000, anchored=True) == 0
        assert rate(over_time.decline, 20, n=1000, anchored=False) > 0.3

    def test_equal_models_go_on_being_released(self):
        free, anchored = (
            rate(over_time.equal_retrains, 8, n=1000, anchored=each) for each in (False, True)
        )
        assert anchored > 0.5 * free > 0.3

    def test_a_budget_of_looks_holds_for_all_of_them(self):
        assert rate(over_time.false_promotion, 150, n=1000, looks=20) < 0.1
        assert rate(over_time.false_promotion, 150, n=1000, looks=0) > 0.15


class TestGroups:
    @pytest.mark.parametrize("margin", [0.0, 0.05])
    def test_of_rows_are_no_more_evidence_than_they_are(self, margin):
        assert rate(conditions.grouped, 150, size=20, margin=margin, known=True) < 0.1
        assert rate(conditions.grouped, 300, size=20, margin=margin, known=False) > 0.15


class TestRareRuin:
    @pytest.mark.parametrize("draw", [conditions.few_ruined, conditions.all_but_few])
    def test_is_not_overlooked(self, draw):
        assert rate(draw, 100) < 0.03
        assert rate(draw, 100, bounded=False) > 0.1

    def test_costs_little_power(self):
        assert rate(conditions.gain, 60) > 0.5


class TestSmallLabels:
    def test_of_too_few_rows_are_refused(self):
        assert rate(conditions.minority, 100, n=150, metric="recall") == 0
        assert rate(conditions.minority, 150, n=320, metric="recall") < 0.1


class TestPower:
    @pytest.mark.parametrize(
        ("n", "gain", "discordance", "least"), [(150, 0.05, 0.1, 0.55), (314, 0.03, 0.05, 0.73)]
    )
    def test_of_better_is_that_of_the_unconditional_test(self, n, gain, discordance, least):
        settings = {"n": n, "gain": gain, "discordance": discordance, "margin": 0.0}
        assert rate(conditions.pairs, 2000, **settings) > least
