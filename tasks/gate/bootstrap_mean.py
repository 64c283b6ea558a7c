"""Tests on the weighted mean of paired differences, for scores that have no exact test.

A loss, an F1 or a share of checks has no exact test. Two tests that fail in different situations
are run, and the larger p-value counts: the sign-flipping test, which is exact if two equally good
models could be swapped example by example (Good 2005, "Permutation, Parametric and Bootstrap Tests
of Hypotheses", chapter 3), and the bootstrap of Student's t (Hall and Wilson 1991, Biometrics
47:757), which also holds if one model is often slightly better and rarely much worse.

A loss per token is a ratio of two sums, so tokens are resampled with their examples, and its
standard error is that of a ratio (Cochran 1977, "Sampling Techniques", section 6.4). Examples that
belong together are drawn together: `by_group` makes one of them. All random seeds are derived from
the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tasks.evaluate.score_table import weighted_mean
from tasks.gate.exact_tests import Interval
from tasks.gate.resampling import MANY_EXAMPLES, RESAMPLES, seed_of

# The gain of an example worse than any in the test set, as a multiple of the worst one there.
UNSEEN = 2.0
# Resampled values per block and in total: very large test sets use fewer resamples.
_BLOCK_VALUES, _TOTAL_VALUES = 2_000_000, 200_000_000
_MIN_RESAMPLES = 999


@dataclass(frozen=True)
class Gain:
    """How much better one model is than another.

    Attributes:
        mean: Weighted mean of the examples' gains.
        interval: Its confidence interval.
        p_value: One-sided, for the hypothesis that the mean is at most the null value.
        standard_error: Of the mean.
        worse_p: One-sided p-value for the hypothesis that the mean is at least 0.
    """

    mean: float
    interval: Interval
    p_value: float
    standard_error: float
    worse_p: float


def compare(
    gains: np.ndarray,
    weights: np.ndarray,
    *,
    null: float = 0.0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    bounded: bool = False,
) -> Gain:
    """Test whether the weighted mean of paired gains is above a value.

    The p-value is the larger of two. Sign flipping: if the models differed by exactly `null`, each
    example's gain minus `null` would be as likely to have the other sign. Bootstrap: the
    t-statistic of the mean is compared with the t-statistics of resampled test sets, each centered
    on the mean of the pool. An example `UNSEEN` times as bad as the worst one is added to the pool,
    and its share of the variance to every standard error: if a few examples are very bad, a sample
    without them overstates the model and understates the spread. With skewness 2 and 300 examples,
    the plain bootstrap passed equal models in 8% of trials instead of 5%.

    Bounded gains have a floor on the p-value, too: the probability that no example is of an unseen
    part, with gains of -1, so large that the mean over all is the null value. No test on what was
    seen can tell such models apart. With a gain of 0.1 on 8% of 150 examples and -0.8 on 1%, which
    cancel out, models passed in 22% of trials without it.

    Above `MANY_EXAMPLES` the normal distribution takes the place of both tests.

    Args:
        gains: How much better the candidate is on each example, float64, shape (n,).
        weights: Weight of each example, such as its tokens, shape (n,); not negative, not all 0.
        null: The value to refute: 0 for "better", minus the margin for "not worse".
        confidence: Of the two-sided interval, in (0, 1), by the same bootstrap on both sides.
        resamples: Maximum number of resamples.
        bounded: Whether gains are within [-1, 1].

    Returns:
        The gain; its p-value is in (0, 1].

    Raises:
        ValueError: Shapes differ, there are no examples, a value is not finite, or weights are
            negative or all 0.
    """
    sample = _Sample(gains, weights)
    mirrored = sample.mirrored()
    tail = (1 - confidence) / 2
    if len(gains) > MANY_EXAMPLES:
        quantiles = [float(stats.norm.isf(tail))] * 2
        p_value, worse_p = sample.asymptotic_p(null), mirrored.asymptotic_p(0.0)
    else:
        resamples = _affordable(resamples, len(gains))
        low, high = sample.t_statistics(resamples), mirrored.t_statistics(resamples)
        quantiles = [float(np.quantile(each, 1 - tail)) for each in (low, high)]
        p_value, worse_p = sample.p_value(null, low), mirrored.p_value(0.0, high)
    if bounded:
        p_value = max(p_value, _unseen_part_p(sample.mean, null, len(gains)))
    # The lower tail is the upper tail with the models swapped.
    below, above = quantiles[0] * sample.spread, quantiles[1] * mirrored.spread
    return Gain(
        mean=sample.mean,
        interval=(sample.mean - max(below, 0.0), sample.mean + max(above, 0.0)),
        p_value=p_value,
        standard_error=sample.standard_error,
        worse_p=worse_p,
    )


def by_group(
    gains: np.ndarray, weights: np.ndarray, groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """One gain and weight for each group: its weighted mean, and the sum of its weights.

    Args:
        gains, weights: As in `compare`.
        groups: A whole number for each example, shape (n,), equal for those that belong together;
            None if none do.
    """
    if groups is None:
        return gains, weights
    _, codes = np.unique(groups, return_inverse=True)
    sums = np.bincount(codes, weights)
    totals = np.bincount(codes, gains * weights)
    return np.divide(totals, sums, out=np.zeros_like(sums), where=sums > 0), sums


def effective_examples(weights: np.ndarray) -> float:
    """How many examples of equal weight would say as much (Kish 1965, "Survey Sampling")."""
    weights = np.asarray(weights, float)
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else 0.0


def interval(
    values: np.ndarray, weights: np.ndarray, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Two-sided confidence interval of a weighted mean, as in `compare`.

    Args:
        values: Float64, shape (n,).
        weights: Weight of each value, shape (n,); not negative, not all 0.
        confidence: In (0, 1).
        resamples: Maximum number of resamples.

    Raises:
        ValueError: As in `compare`.
    """
    return compare(values, weights, confidence=confidence, resamples=resamples).interval


class _Sample:
    """Weighted gains and their statistics.

    Attributes:
        mean: The weighted mean.
        standard_error: Of the mean.
        spread: The standard error, including the share of the added example.
    """

    def __init__(self, gains: np.ndarray, weights: np.ndarray) -> None:
        gains, weights = np.asarray(gains, float), np.asarray(weights, float)
        if gains.shape != weights.shape or gains.ndim != 1 or not gains.size:
            raise ValueError(f"gains and weights do not match: {gains.shape}, {weights.shape}")
        if not (np.isfinite(gains).all() and np.isfinite(weights).all()):
            raise ValueError("a gain or a weight is not a finite number")
        if weights.min() < 0 or not weights.sum():
            raise ValueError("weights are negative, or all 0")
        # In units of the mean weight, so the weights add up to the number of examples. Sorted,
        # because resamples must not depend on the order of the examples.
        order = np.lexsort((weights, gains))
        self._gains, self._weights = gains[order], weights[order] / weights.mean()
        n = len(gains)
        self.mean = weighted_mean(self._gains, self._weights)
        self._centered = self._weights * (self._gains - self.mean)
        # Equal gains leave rounding errors.
        self._centered[np.abs(self._centered) < 1e-12 * (1 + abs(self.mean))] = 0.0
        self._unseen = UNSEEN * min(float(self._centered.min()), 0.0)
        variance = (self._centered**2).sum() / max(n * (n - 1), 1)
        self.standard_error = float(np.sqrt(variance))
        self._added_variance = (self._unseen / n) ** 2
        self.spread = float(np.sqrt(variance + self._added_variance))

    def mirrored(self) -> _Sample:
        """The sample with the models swapped."""
        return _Sample(-self._gains, self._weights)

    def t_statistics(self, resamples: int) -> np.ndarray:
        """t-statistics of resampled test sets, centered on the pool's mean, shape (resamples,)."""
        n = len(self._centered)
        if not self.spread:
            return np.zeros(resamples)
        centered = np.append(self._centered, self._unseen)
        weights = np.append(self._weights, 1.0)
        # The added example has moved the pool's mean.
        centered = centered - weights * centered.sum() / weights.sum()
        terms = np.stack([centered, weights, centered**2, centered * weights, weights**2], axis=1)
        if (self._weights == 1).all():
            # The sums of equal weights are known.
            terms = terms[:, [0, 2]]
        found = []
        for size, random in _blocks(resamples, n, self._seed(b"bootstrap")):
            sums = terms[random.integers(0, n + 1, (size, n))].sum(axis=1)
            if sums.shape[1] == 2:
                total, squares = sums.T
                count = np.full(size, float(n))
                crossed, weights_squared = total, count
            else:
                total, count, squares, crossed, weights_squared = sums.T
            mean = total / count
            around = squares - 2 * mean * crossed + mean**2 * weights_squared
            variance = np.maximum(around, 0) * n / max(n - 1, 1) / count**2
            found.append(mean / np.sqrt(variance + self._added_variance))
        return np.concatenate(found)

    def p_value(self, null: float, t_statistics: np.ndarray) -> float:
        """The larger one-sided p-value of both tests that the mean is at most `null`."""
        if self.mean <= null:
            return 1.0
        by_signs = self._sign_flipping_p(null, len(t_statistics))
        if not self.spread:
            return by_signs
        extreme = int((t_statistics >= (self.mean - null) / self.spread).sum())
        return max(by_signs, _share(extreme, len(t_statistics)))

    def asymptotic_p(self, null: float) -> float:
        """One-sided p-value that the mean is at most `null`, by the normal distribution."""
        if self.mean <= null or not self.spread:
            return float(self.mean <= null)
        return float(stats.norm.sf((self.mean - null) / self.spread))

    def _sign_flipping_p(self, null: float, resamples: int) -> float:
        """One-sided p-value of flipping the signs of the gains minus `null`."""
        parts = self._weights * (self._gains - null)
        n, extreme = len(parts), 0
        for size, random in _blocks(resamples, n, self._seed(b"signs")):
            bits = np.unpackbits(np.frombuffer(random.bytes(size * -(-n // 8)), np.uint8))
            flipped = bits.reshape(size, -1)[:, :n].astype(np.float64) @ parts
            # Flipping gains that add up to at most 0 does not lower the sum.
            extreme += int((flipped <= 1e-12 * np.abs(parts).sum()).sum())
        return _share(extreme, resamples)

    def _seed(self, use: bytes) -> int:
        rounded = (np.round(values, 9) for values in (self._gains, self._weights))
        return seed_of(use, *(values.astype("<f8").tobytes() for values in rounded))


def _blocks(resamples: int, n: int, seed: int) -> Iterator[tuple[int, np.random.Generator]]:
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK_VALUES // n)
    for start in range(0, resamples, block):
        yield min(block, resamples - start), random


def _unseen_part_p(mean: float, null: float, n: int) -> float:
    """P(no example of the smallest part, with gains of -1, that would lower the mean to `null`)."""
    part = (mean - null) / (1 + mean) if mean > -1 else 1.0
    return float((1 - min(max(part, 0.0), 1.0)) ** n)


def _affordable(resamples: int, n: int) -> int:
    return min(resamples, max(_MIN_RESAMPLES, _TOTAL_VALUES // n))


def _share(extreme: int, resamples: int) -> float:
    return (1 + extreme) / (1 + resamples)
