"""The exact tests, compared with independent implementations and with their error rates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tasks.gate import exact_tests

counts = st.integers(0, 40)


@st.composite
def outcomes(draw):
    """(gained, lost, examples)."""
    gained, lost = draw(counts), draw(counts)
    return gained, lost, gained + lost + draw(st.integers(1, 300))


def level(test, examples, discordance, difference, alpha=0.05):
    """Exact probability that `test(gained, lost)` is at most alpha, by summing the multinomial."""
    total = 0.0
    share = (discordance + difference) / (2 * discordance)
    for pairs in range(examples + 1):
        weight = stats.binom.pmf(pairs, examples, discordance)
        if weight < 1e-9:
            continue
        low, high = 0, pairs + 1
        while low < high:
            middle = (low + high) // 2
            if test(middle, pairs - middle) <= alpha:
                high = middle
            else:
                low = middle + 1
        total += weight * stats.binom.sf(low - 1, pairs, share)
    return total


class TestDiscordantPairs:
    def test_counts_examples_on_which_exactly_one_model_is_right(self):
        candidate = np.array([True, True, True, False, False])
        baseline = np.array([True, False, False, True, False])
        assert exact_tests.discordant_pairs(candidate, baseline) == (2, 1)

    def test_unpaired_outcomes_are_refused(self):
        with pytest.raises(ValueError, match="not paired"):
            exact_tests.discordant_pairs(np.ones(3, bool), np.ones(2, bool))


class TestSuperiority:
    @settings(max_examples=10, deadline=None)
    @given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 20))
    def test_is_the_largest_probability_of_an_outcome_as_extreme(self, gained, lost, rest):
        examples = gained + lost + rest
        if gained <= lost:
            assert exact_tests.superiority_p(gained, lost, examples) == 1
            return
        observed = (gained - lost) / np.sqrt(gained + lost)
        largest = 0.0
        for discordance in np.linspace(0, 1, 101):
            found = 0.0
            for pairs in range(1, examples + 1):
                gains = np.arange(pairs + 1)
                extreme = gains[(2 * gains - pairs) / np.sqrt(pairs) >= observed - 1e-9]
                chance = stats.binom.pmf(extreme, pairs, 0.5).sum()
                found += stats.binom.pmf(pairs, examples, discordance) * chance
            largest = max(largest, found)
        # The discordance is searched within an interval only.
        p_value = exact_tests.superiority_p(gained, lost, examples)
        assert p_value <= largest + 1e-3
        assert p_value > 0.4 * largest

    @pytest.mark.parametrize(
        ("gained", "lost", "examples"), [(14, 6, 314), (8, 2, 150), (30, 15, 600), (5, 0, 200)]
    )
    def test_is_more_sensitive_than_the_conditional_test(self, gained, lost, examples):
        conditional = mcnemar([[7, gained], [lost, 9]], exact=True).pvalue / 2
        assert exact_tests.superiority_p(gained, lost, examples) < conditional

    @given(counts)
    def test_ties_are_not_evidence(self, pairs):
        assert exact_tests.superiority_p(pairs, pairs, 2 * pairs + 1) > 0.5

    @pytest.mark.parametrize("discordance", [0.05, 0.25])
    def test_equally_good_models_pass_in_at_most_5_percent(self, discordance):
        rate = level(lambda g, x: exact_tests.superiority_p(g, x, 300), 300, discordance, 0.0)
        assert 0.04 < rate <= 0.0501

    def test_agrees_with_the_interval(self):
        assert exact_tests.superiority_p(14, 6, 314) < 0.05
        assert exact_tests.difference_interval(14, 6, 314, 0.9)[0] > 0

    def test_negative_counts_are_refused(self):
        with pytest.raises(ValueError, match="negative"):
            exact_tests.superiority_p(-1, 3, 10)

    def test_the_approximation_for_many_pairs_is_near(self):
        exact = exact_tests.superiority_p(530, 470, 20_000)
        assert exact_tests.superiority_p(531, 470, 20_000) == pytest.approx(exact, rel=0.1)
        exact = exact_tests.noninferiority_p(470, 530, 20_000, 0.005)
        approximate = exact_tests.noninferiority_p(470, 531, 20_000, 0.005)
        assert approximate == pytest.approx(exact, rel=0.2)


class TestScoreStatistic:
    @settings(max_examples=60)
    @given(outcomes(), st.floats(-0.6, 0.6))
    def test_variance_is_the_maximum_likelihood_estimate_under_the_hypothesis(
        self, outcome, difference
    ):
        gained, lost, examples = outcome
        floor = max(0.0, -difference)
        ceiling = (1 - difference) / 2

        def unlikelihood(lost_share):
            gained_share = lost_share + difference
            rest = max(1 - gained_share - lost_share, 1e-300)
            return -(
                gained * np.log(max(gained_share, 1e-300))
                + lost * np.log(max(lost_share, 1e-300))
                + (examples - gained - lost) * np.log(rest)
            )

        share = optimize.minimize_scalar(
            unlikelihood, bounds=(floor, ceiling), method="bounded", options={"xatol": 1e-12}
        ).x
        variance = examples * (2 * share + difference - difference**2)
        shift = gained - lost - examples * difference
        if variance < 1e-3 or abs(shift) < 1e-9:
            return
        statistic = float(exact_tests.score_statistic(gained, lost, examples, difference))
        assert statistic == pytest.approx(shift / np.sqrt(variance), rel=1e-3)

    @given(outcomes(), st.floats(-0.5, 0.5))
    def test_swapping_the_models_flips_the_sign(self, outcome, difference):
        gained, lost, examples = outcome
        one = float(exact_tests.score_statistic(gained, lost, examples, difference))
        other = float(exact_tests.score_statistic(lost, gained, examples, -difference))
        assert one == pytest.approx(-other, rel=1e-6, abs=1e-6)

    @given(st.integers(1, 60), st.integers(0, 200), st.sampled_from([0.01, 0.02, 0.05, 0.2]))
    def test_rises_with_the_gains_among_the_pairs(self, pairs, rest, margin):
        gained = np.arange(pairs + 1)
        statistic = exact_tests.score_statistic(gained, pairs - gained, pairs + rest, -margin)
        assert (np.diff(statistic) > 0).all()


class TestNonInferiority:
    @pytest.mark.parametrize("margin", [0.02, 0.05])
    @pytest.mark.parametrize("discordance", [0.05, 0.1])
    def test_model_worse_by_the_margin_passes_in_at_most_5_percent(self, discordance, margin):
        def test(gained, lost):
            return exact_tests.noninferiority_p(gained, lost, 300, margin)

        assert 0.02 < level(test, 300, discordance, -margin) <= 0.05

    def test_error_rate_holds_where_that_of_the_normal_approximation_does_not(self):
        def approximate(gained, lost):
            return stats.norm.sf(exact_tests.score_statistic(gained, lost, 300, -0.05))

        def exact(gained, lost):
            return exact_tests.noninferiority_p(gained, lost, 300, 0.05)

        assert level(approximate, 300, 0.2, -0.05) > 0.05
        assert level(exact, 300, 0.2, -0.05) <= 0.05

    def test_model_worse_than_the_margin_passes_even_less_often(self):
        def test(gained, lost):
            return exact_tests.noninferiority_p(gained, lost, 300, 0.02)

        assert level(test, 300, 0.06, -0.04) < level(test, 300, 0.06, -0.02)

    def test_equally_good_model_passes_far_more_often(self):
        def test(gained, lost):
            return exact_tests.noninferiority_p(gained, lost, 400, 0.02)

        assert level(test, 400, 0.05, 0.0) > 0.4

    def test_approaches_the_normal_approximation_on_many_examples(self):
        approximate = stats.norm.sf(exact_tests.score_statistic(1200, 1300, 20_000, -0.01))
        assert exact_tests.noninferiority_p(1200, 1300, 20_000, 0.01) == pytest.approx(
            approximate, rel=0.1
        )

    def test_follows_the_rule_of_three_without_discordant_pairs(self):
        assert exact_tests.noninferiority_p(0, 0, 148, 0.02) == pytest.approx(0.98**148, abs=2e-6)

    @settings(max_examples=30)
    @given(outcomes(), st.sampled_from([0.02, 0.05, 0.1]))
    def test_turning_a_lost_pair_into_a_gain_lowers_the_p_value(self, outcome, margin):
        gained, lost, examples = outcome
        if lost == 0:
            return
        before = exact_tests.noninferiority_p(gained, lost, examples, margin)
        assert exact_tests.noninferiority_p(gained + 1, lost - 1, examples, margin) <= before

    @pytest.mark.parametrize(
        ("gained", "lost", "examples", "margin"),
        [(-1, 0, 10, 0.1), (6, 5, 10, 0.1), (1, 1, 10, 0.0), (1, 1, 10, 1.0), (0, 0, 0, 0.1)],
    )
    def test_impossible_counts_and_margins_are_refused(self, gained, lost, examples, margin):
        with pytest.raises(ValueError):
            exact_tests.noninferiority_p(gained, lost, examples, margin)


class TestDifferenceInterval:
    @settings(max_examples=60)
    @given(outcomes(), st.sampled_from([0.8, 0.95, 0.99]))
    def test_ends_are_the_differences_that_the_score_test_just_rejects(self, outcome, confidence):
        gained, lost, examples = outcome
        low, high = exact_tests.difference_interval(gained, lost, examples, confidence)
        z = stats.norm.isf((1 - confidence) / 2)
        assert low <= (gained - lost) / examples <= high
        assert float(exact_tests.score_statistic(gained, lost, examples, low)) == pytest.approx(
            z, rel=1e-4
        )
        assert float(exact_tests.score_statistic(gained, lost, examples, high)) == pytest.approx(
            -z, rel=1e-4
        )

    @settings(max_examples=60)
    @given(outcomes())
    def test_swapping_the_models_mirrors_the_interval(self, outcome):
        gained, lost, examples = outcome
        low, high = exact_tests.difference_interval(gained, lost, examples)
        mirrored = exact_tests.difference_interval(lost, gained, examples)
        assert mirrored == pytest.approx((-high, -low), abs=1e-8)

    def test_matches_the_wald_interval_on_many_pairs(self):
        low, high = exact_tests.difference_interval(2000, 1800, 40_000)
        half = 1.96 * np.sqrt(3800 / 40_000 - 0.005**2) / 200
        assert (low, high) == pytest.approx((0.005 - half, 0.005 + half), abs=2e-5)

    def test_interval_has_a_width_without_discordant_pairs(self):
        low, high = exact_tests.difference_interval(0, 0, 100)
        assert low == pytest.approx(-high)
        assert 0.02 < high < 0.05

    @pytest.mark.parametrize("outcome", [(0, 10, 10), (10, 0, 10), (1, 0, 1)])
    def test_stays_between_minus_1_and_1(self, outcome):
        low, high = exact_tests.difference_interval(*outcome)
        assert -1 <= low < high <= 1

    def test_covers_the_true_difference_at_its_confidence(self):
        random = np.random.default_rng(5)
        draws = random.multinomial(200, [0.03, 0.07, 0.9], size=400)
        found = [exact_tests.difference_interval(int(g), int(x), 200) for g, x, _ in draws]
        assert 0.92 <= np.mean([low <= -0.04 <= high for low, high in found]) <= 0.98


class TestWilsonInterval:
    def test_matches_a_worked_example(self):
        # Newcombe 1998, Statistics in Medicine 17:857, Table I: 81 of 263.
        assert exact_tests.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)

    @given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.999]))
    def test_contains_the_proportion_and_stays_within_0_and_1(self, examples, share, confidence):
        successes = round(share * examples)
        low, high = exact_tests.wilson_interval(successes, examples, confidence)
        assert 0 <= low <= successes / examples + 1e-12
        assert successes / examples - 1e-12 <= high <= 1
        expected = proportion_confint(successes, examples, 1 - confidence, "wilson")
        assert (low, high) == pytest.approx(expected, abs=1e-9)


class TestHolm:
    def test_matches_a_worked_example(self):
        # 4 x 0.005, 3 x 0.01, 2 x 0.03, and never less than the one before.
        adjusted = exact_tests.holm([0.01, 0.04, 0.03, 0.005])
        assert adjusted.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_no_p_values_give_none(self):
        assert exact_tests.holm([]).tolist() == []

    def test_agrees_with_statsmodels(self):
        random = np.random.default_rng(2)
        for size in (1, 2, 5, 9):
            p_values = np.round(random.random(size) ** 3, 2)
            expected = multipletests(p_values, method="holm")[1]
            assert exact_tests.holm(p_values).tolist() == pytest.approx(expected.tolist())

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    def test_raises_p_values_by_no_more_than_bonferroni(self, p_values):
        adjusted = exact_tests.holm(p_values)
        bonferroni = np.minimum(1, np.array(p_values) * len(p_values))
        assert (adjusted >= np.array(p_values)).all()
        assert (adjusted <= max(bonferroni)).all()
        assert adjusted.min() == pytest.approx(bonferroni.min())
