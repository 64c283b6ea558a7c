"""The paired bootstrap, compared with scikit-learn, exact intervals and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from tasks.gate import bootstrap_f1, exact_tests


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
    def test_metrics_are_those_of_scikit_learn(self, n, seed):
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

    def test_prediction_outside_the_true_labels_is_wrong_and_has_no_term_of_its_own(self):
        truth, other = np.array(["a", "b", "b"]), np.array(["a", "b", "zebra"])
        found = bootstrap_f1.bootstrap_difference(truth, truth, other, "recall", resamples=2)
        assert found.baseline == pytest.approx((1 + 1 / 2) / 2)

    def test_does_not_depend_on_the_order_of_examples(self):
        truth, candidate, baseline = answers(300, 1)
        first = bootstrap_f1.bootstrap_difference(truth, candidate, baseline, "f1", resamples=200)
        turned = np.random.default_rng(0).permutation(300)
        second = bootstrap_f1.bootstrap_difference(
            truth[turned], candidate[turned], baseline[turned], "f1", resamples=200
        )
        assert first == second

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

    def test_standard_error_is_that_of_repeated_test_sets(self):
        drawn = [
            bootstrap_f1.bootstrap_difference(*answers(400, seed), "f1", resamples=2).difference
            for seed in range(400)
        ]
        found = bootstrap_f1.bootstrap_difference(*answers(400, 7), "f1", resamples=2000)
        assert found.standard_error == pytest.approx(np.std(drawn), rel=0.25)

    def test_equal_predictions_are_not_better(self):
        truth, candidate, _ = answers(300, 8)
        assert bootstrap_f1.bootstrap_difference(truth, candidate, candidate, "f1").p_value > 0.4

    def test_equal_predictions_on_few_examples_do_not_show_not_worse(self):
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

    def test_clearly_better_model_passes(self):
        truth, candidate, baseline = answers(1000, 9, (0.95, 0.8))
        found = bootstrap_f1.bootstrap_difference(truth, candidate, baseline, "recall")
        assert found.p_value < 0.001
        assert found.interval[0] > 0

    def test_interval_of_one_model_is_close_to_wilsons_on_accuracy(self):
        truth, candidate, _ = answers(800, 10)
        found = bootstrap_f1.bootstrap_interval(truth, candidate, "accuracy")
        expected = exact_tests.wilson_interval(int((truth == candidate).sum()), 800)
        assert found == pytest.approx(expected, abs=0.006)

    def test_interval_without_mistakes_on_few_examples_reaches_below_1(self):
        truth, _, _ = answers(30, 11)
        low, high = bootstrap_f1.bootstrap_interval(truth, truth, "f1")
        assert low < 0.97
        assert high == 1

    def test_invalid_input_is_refused(self):
        empty = np.array([], dtype=str)
        with pytest.raises(ValueError, match="no examples"):
            bootstrap_f1.bootstrap_difference(empty, empty, empty, "f1")
        with pytest.raises(ValueError, match="not paired"):
            bootstrap_f1.bootstrap_difference(np.array(["a"]), empty, empty, "f1")
        with pytest.raises(ValueError, match="confidence"):
            bootstrap_f1.bootstrap_interval(np.array(["a"]), np.array(["a"]), "f1", confidence=1.0)
