"""Tests on weighted means of paired differences."""

import math

import numpy as np
import pytest

from tasks.gate import (
    bootstrap_mean,
)


class TestCompare:
    def test_interval_of_normal_gains_is_that_of_student(self):
        gains = np.random.default_rng(5).normal(0.1, 1, 2000)
        found = bootstrap_mean.compare(gains, np.ones(2000), confidence=0.9)
        error = gains.std(ddof=1) / math.sqrt(2000)
        assert found.standard_error == pytest.approx(error)
        assert found.mean == pytest.approx(gains.mean())
        assert found.interval == pytest.approx(
            (gains.mean() - 1.645 * error, gains.mean() + 1.645 * error), abs=0.1 * error
        )

    def test_weights_count_as_repetitions(self):
        gains = np.random.default_rng(6).normal(size=50)
        weights = np.arange(50) % 3 + 1
        found = bootstrap_mean.compare(gains, weights)
        assert found.mean == pytest.approx(np.repeat(gains, weights).mean())
        assert bootstrap_mean.compare(gains, 10.0 * weights).p_value == found.p_value

    def test_p_value_of_a_small_sample_is_at_least_the_exact_one(self):
        # All of 6 gains: 1 of 64 sign patterns is as extreme.
        found = bootstrap_mean.compare(
            np.ones(6) + np.arange(6) / 100, np.ones(6), resamples=99_999
        )
        assert found.p_value >= 1 / 64 - 0.002

    def test_p_value_is_never_0(self):
        assert bootstrap_mean.compare(np.full(200, 5.0), np.ones(200)).p_value == 1 / 10_000

    @pytest.mark.parametrize(
        ("gains", "weights"),
        [([], []), ([1.0], [0.0]), ([np.nan], [1.0]), ([1.0, 2.0], [1.0]), ([1.0], [-1.0])],
    )
    def test_invalid_samples_are_refused(self, gains, weights):
        with pytest.raises(ValueError):
            bootstrap_mean.compare(np.array(gains), np.array(weights))
