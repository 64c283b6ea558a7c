"""The statistics, held against independent implementations and against their own promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.metrics import f1_score, precision_score, recall_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tasks.gate import bootstrap_f1, exact_tests, power

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
    def test_counts_only_examples_on_which_one_model_is_right(self):
        candidate = np.array([True, True, True, False, False])
        baseline = np.array([True, False, False, True, False])
        assert exact_tests.discordant_pairs(candidate, baseline) == (2, 1)

    def test_refuses_outcomes_that_are_not_paired(self):
        with pytest.raises(ValueError, match="not paired"):
            exact_tests.discordant_pairs(np.ones(3, bool), np.ones(2, bool))


class TestSuperiority:
    @given(counts, counts)
    def test_agrees_with_the_binomial_distribution(self, gained, lost):
        expected = stats.binom.sf(gained - 1, gained + lost, 0.5)
        assert exact_tests.superiority_p(gained, lost) == pytest.approx(expected, rel=1e-9)

    @given(counts, counts)
    def test_doubled_it_is_the_two_sided_test_of_statsmodels(self, gained, lost):
        two_sided = mcnemar([[7, gained], [lost, 9]], exact=True).pvalue
        smaller = min(
            exact_tests.superiority_p(gained, lost), exact_tests.superiority_p(lost, gained)
        )
        assert min(1, 2 * smaller) == pytest.approx(two_sided, rel=1e-9)

    @given(counts)
    def test_ties_prove_nothing(self, pairs):
        assert exact_tests.superiority_p(pairs, pairs) > 0.5

    @given(counts, counts)
    def test_each_further_gain_is_stronger_evidence(self, gained, lost):
        assert exact_tests.superiority_p(gained + 1, lost) < exact_tests.superiority_p(gained, lost)

    @pytest.mark.parametrize("discordance", [0.05, 0.25])
    def test_equally_good_models_pass_in_at_most_one_of_twenty(self, discordance):
        rate = level(exact_tests.superiority_p, 300, discordance, 0.0)
        assert 0.01 < rate <= 0.05

    def test_refuses_negative_counts(self):
        with pytest.raises(ValueError, match="negative"):
            exact_tests.superiority_p(-1, 3)


class TestScoreStatistic:
    @settings(max_examples=60)
    @given(outcomes(), st.floats(-0.6, 0.6))
    def test_its_variance_is_the_likeliest_under_the_hypothesis(self, outcome, difference):
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
    def test_swapping_the_models_flips_its_sign(self, outcome, difference):
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
    def test_a_model_worse_by_the_margin_passes_in_at_most_one_of_twenty(self, discordance, margin):
        def test(gained, lost):
            return exact_tests.noninferiority_p(gained, lost, 300, margin)

        assert 0.02 < level(test, 300, discordance, -margin) <= 0.05

    def test_holds_where_tangos_normal_approximation_does_not(self):
        def approximate(gained, lost):
            return stats.norm.sf(exact_tests.score_statistic(gained, lost, 300, -0.05))

        def exact(gained, lost):
            return exact_tests.noninferiority_p(gained, lost, 300, 0.05)

        assert level(approximate, 300, 0.2, -0.05) > 0.05
        assert level(exact, 300, 0.2, -0.05) <= 0.05

    def test_a_model_worse_than_the_margin_passes_more_rarely_still(self):
        def test(gained, lost):
            return exact_tests.noninferiority_p(gained, lost, 300, 0.02)

        assert level(test, 300, 0.06, -0.04) < level(test, 300, 0.06, -0.02)

    def test_an_equally_good_model_passes_far_more_often(self):
        def test(gained, lost):
            return exact_tests.noninferiority_p(gained, lost, 400, 0.02)

        assert level(test, 400, 0.05, 0.0) > 0.4

    def test_approaches_the_normal_approximation_on_many_examples(self):
        approximate = stats.norm.sf(exact_tests.score_statistic(1200, 1300, 20_000, -0.01))
        assert exact_tests.noninferiority_p(1200, 1300, 20_000, 0.01) == pytest.approx(
            approximate, rel=0.1
        )

    def test_without_discordant_pairs_it_is_the_rule_of_three(self):
        assert exact_tests.noninferiority_p(0, 0, 148, 0.02) == pytest.approx(0.98**148, abs=2e-6)

    @settings(max_examples=30)
    @given(outcomes(), st.sampled_from([0.02, 0.05, 0.1]))
    def test_a_lost_pair_that_turns_into_a_gain_is_stronger_evidence(self, outcome, margin):
        gained, lost, examples = outcome
        if lost == 0:
            return
        before = exact_tests.noninferiority_p(gained, lost, examples, margin)
        assert exact_tests.noninferiority_p(gained + 1, lost - 1, examples, margin) <= before

    @pytest.mark.parametrize(
        ("gained", "lost", "examples", "margin"),
        [(-1, 0, 10, 0.1), (6, 5, 10, 0.1), (1, 1, 10, 0.0), (1, 1, 10, 1.0), (0, 0, 0, 0.1)],
    )
    def test_refuses_what_cannot_be(self, gained, lost, examples, margin):
        with pytest.raises(ValueError):
            exact_tests.noninferiority_p(gained, lost, examples, margin)


class TestDifferenceInterval:
    @settings(max_examples=60)
    @given(outcomes(), st.sampled_from([0.8, 0.95, 0.99]))
    def test_its_ends_are_the_differences_that_the_score_test_just_refuses(
        self, outcome, confidence
    ):
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
    def test_swapping_the_models_mirrors_it(self, outcome):
        gained, lost, examples = outcome
        low, high = exact_tests.difference_interval(gained, lost, examples)
        mirrored = exact_tests.difference_interval(lost, gained, examples)
        assert mirrored == pytest.approx((-high, -low), abs=1e-8)

    def test_matches_the_textbook_interval_on_many_pairs(self):
        low, high = exact_tests.difference_interval(2000, 1800, 40_000)
        half = 1.96 * np.sqrt(3800 / 40_000 - 0.005**2) / 200
        assert (low, high) == pytest.approx((0.005 - half, 0.005 + half), abs=2e-5)

    def test_two_models_that_always_agree_may_still_differ(self):
        low, high = exact_tests.difference_interval(0, 0, 100)
        assert low == pytest.approx(-high)
        assert 0.02 < high < 0.05

    @pytest.mark.parametrize("outcome", [(0, 10, 10), (10, 0, 10), (1, 0, 1)])
    def test_stays_within_what_is_possible(self, outcome):
        low, high = exact_tests.difference_interval(*outcome)
        assert -1 <= low < high <= 1

    def test_covers_the_truth_as_often_as_it_says(self):
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

    def test_of_nothing_is_nothing(self):
        assert exact_tests.holm([]).tolist() == []

    def test_agrees_with_statsmodels(self):
        random = np.random.default_rng(2)
        for size in (1, 2, 5, 9):
            p_values = np.round(random.random(size) ** 3, 2)
            expected = multipletests(p_values, method="holm")[1]
            assert exact_tests.holm(p_values).tolist() == pytest.approx(expected.tolist())

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    def test_only_ever_raises_p_values_and_no_more_than_bonferroni(self, p_values):
        adjusted = exact_tests.holm(p_values)
        bonferroni = np.minimum(1, np.array(p_values) * len(p_values))
        assert (adjusted >= np.array(p_values)).all()
        assert (adjusted <= max(bonferroni)).all()
        assert adjusted.min() == pytest.approx(bonferroni.min())


class TestPower:
    def test_matches_simulation(self):
        random = np.random.default_rng(3)
        draws = random.multinomial(400, [0.08, 0.04, 0.88], size=4000)
        shown = [exact_tests.superiority_p(int(g), int(x)) <= 0.05 for g, x, _ in draws]
        expected = power.superiority_power(400, 0.12, 0.04, 0.05)
        assert expected == pytest.approx(np.mean(shown), abs=0.025)

    def test_the_detectable_gain_is_shown_with_the_power_that_was_asked_for(self):
        gain = power.detectable_gain(334, 8 / 334)
        assert 0.02 < gain < 0.03
        assert power.superiority_power(334, 8 / 334, gain, 0.05) == pytest.approx(0.8, abs=0.01)

    def test_approaches_the_normal_formula_on_many_examples(self):
        normal = (1.6449 + 0.8416) * np.sqrt(0.2 / 50_000)
        assert power.detectable_gain(50_000, 0.2) == pytest.approx(normal, rel=0.03)
        assert power.detectable_by_error(np.sqrt(0.2 / 50_000)) == pytest.approx(normal, abs=1e-4)

    def test_a_handful_of_examples_shows_nothing(self):
        assert power.detectable_gain(4, 0.1) is None
        assert power.detectable_by_error(0.0) is None

    def test_more_examples_show_smaller_gains(self):
        gains = [power.detectable_gain(n, 0.1) for n in (50, 200, 800, 3200)]
        assert gains == sorted(gains, reverse=True)

    def test_a_gain_above_the_discordance_cannot_be(self):
        with pytest.raises(ValueError, match="does not fit"):
            power.superiority_power(100, 0.05, 0.1, 0.05)

    @pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
    def test_the_least_examples_are_just_enough(self, margin):
        least = power.least_examples(margin)
        assert exact_tests.noninferiority_p(0, 0, least, margin) <= 0.05
        assert exact_tests.noninferiority_p(0, 0, least - 1, margin) > 0.05


def answers(n, seed, skill=(0.85, 0.8), labels=("a", "b", "c")):
    """Truth, candidate's and baseline's answers, drawn at random; label a is the most frequent."""
    random = np.random.default_rng(seed)
    weights = np.arange(len(labels), 0, -1) / sum(range(len(labels) + 1))
    truth = random.choice(labels, n, p=weights)
    return (
        truth,
        *(np.where(random.random(n) < s, truth, random.choice(labels, n)) for s in skill),
    )


class TestBootstrap:
    @settings(max_examples=25)
    @given(st.integers(1, 200), st.integers(0, 10**6))
    def test_its_metrics_are_those_of_scikit_learn(self, n, seed):
        truth, candidate, baseline = answers(n, seed)
        oracles = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
        for metric, oracle in oracles.items():
            found = bootstrap_f1.bootstrap_difference(
                truth, candidate, baseline, metric, resamples=2
            )
            options = {"labels": np.unique(truth), "average": "macro", "zero_division": 0}
            assert found.candidate == pytest.approx(oracle(truth, candidate, **options))
            assert found.baseline == pytest.approx(oracle(truth, baseline, **options))
            assert found.difference == pytest.approx(found.candidate - found.baseline)

    def test_an_answer_that_is_no_label_of_the_truth_is_wrong_and_has_no_term_of_its_own(self):
        truth, other = np.array(["a", "b", "b"]), np.array(["a", "b", "zebra"])
        found = bootstrap_f1.bootstrap_difference(truth, truth, other, "recall", resamples=2)
        assert found.baseline == pytest.approx((1 + 1 / 2) / 2)

    def test_gives_the_same_result_twice_and_in_any_order(self):
        truth, candidate, baseline = answers(300, 1)
        first = bootstrap_f1.bootstrap_difference(truth, candidate, baseline, "f1", resamples=200)
        turned = np.random.default_rng(0).permutation(300)
        second = bootstrap_f1.bootstrap_difference(
            truth[turned], candidate[turned], baseline[turned], "f1", resamples=200
        )
        assert first == second

    def test_other_outcomes_draw_other_resamples(self):
        one = bootstrap_f1._count_cells(*answers(300, 1)).seed
        other = bootstrap_f1._count_cells(*answers(300, 2)).seed
        assert one != other

    def test_swapping_the_models_flips_the_difference(self):
        truth, candidate, baseline = answers(400, 4)
        one = bootstrap_f1.bootstrap_difference(truth, candidate, baseline, "f1")
        other = bootstrap_f1.bootstrap_difference(truth, baseline, candidate, "f1")
        assert one.difference == -other.difference
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=0.01)
        assert one.p_value == pytest.approx(1 - other.p_value, abs=0.03)

    def test_agrees_with_the_score_interval_on_accuracy(self):
        truth, candidate, baseline = answers(1500, 6)
        found = bootstrap_f1.bootstrap_difference(truth, candidate, baseline, "accuracy")
        gained, lost = exact_tests.discordant_pairs(candidate == truth, baseline == truth)
        expected = exact_tests.difference_interval(gained, lost, 1500)
        assert found.interval == pytest.approx(expected, abs=0.004)

    def test_its_standard_error_is_that_of_repeated_test_sets(self):
        drawn = [
            bootstrap_f1.bootstrap_difference(*answers(400, seed), "f1", resamples=2).difference
            for seed in range(400)
        ]
        found = bootstrap_f1.bootstrap_difference(*answers(400, 7), "f1", resamples=2000)
        assert found.standard_error == pytest.approx(np.std(drawn), rel=0.25)

    def test_equal_answers_do_not_prove_better(self):
        truth, candidate, _ = answers(300, 8)
        assert bootstrap_f1.bootstrap_difference(truth, candidate, candidate, "f1").p_value > 0.4

    def test_equal_answers_on_few_examples_do_not_prove_not_worse(self):
        truth, candidate, _ = answers(40, 8)
        found = bootstrap_f1.bootstrap_difference(truth, candidate, candidate, "f1", null=-0.02)
        assert found.p_value > 0.05

    def test_equally_good_models_rarely_pass(self):
        passed = [
            bootstrap_f1.bootstrap_difference(
                *answers(300, seed, (0.8, 0.8)), "f1", resamples=499
            ).p_value
            <= 0.05
            for seed in range(250)
        ]
        assert 0.01 < np.mean(passed) < 0.08

    def test_a_clearly_better_model_passes(self):
        truth, candidate, baseline = answers(1000, 9, (0.95, 0.8))
        found = bootstrap_f1.bootstrap_difference(truth, candidate, baseline, "recall")
        assert found.p_value < 0.001
        assert found.interval[0] > 0

    def test_an_interval_for_one_model_is_close_to_wilsons_on_accuracy(self):
        truth, candidate, _ = answers(800, 10)
        found = bootstrap_f1.bootstrap_interval(truth, candidate, "accuracy")
        expected = exact_tests.wilson_interval(int((truth == candidate).sum()), 800)
        assert found == pytest.approx(expected, abs=0.006)

    def test_no_mistake_on_few_examples_is_not_perfection(self):
        truth, _, _ = answers(30, 11)
        low, high = bootstrap_f1.bootstrap_interval(truth, truth, "f1")
        assert low < 0.97
        assert high == 1

    def test_refuses_what_it_cannot_compare(self):
        empty = np.array([], dtype=str)
        with pytest.raises(ValueError, match="no examples"):
            bootstrap_f1.bootstrap_difference(empty, empty, empty, "f1")
        with pytest.raises(ValueError, match="not paired"):
            bootstrap_f1.bootstrap_difference(np.array(["a"]), empty, empty, "f1")
        with pytest.raises(ValueError, match="confidence"):
            bootstrap_f1.bootstrap_interval(np.array(["a"]), np.array(["a"]), "f1", confidence=1.0)
