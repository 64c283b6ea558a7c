"""Exact tests and intervals for two classifiers that answered the same examples.

Only the examples on which exactly one model is right say which is more accurate: *gained*
(candidate right, baseline wrong) and *lost* (the reverse). Tests on these counts are exact: their
error rate holds for test sets of any size, not only for large ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.proportion import proportion_confint

Interval = tuple[float, float]

# Probability that the discordance is outside the searched range; added to every p-value.
NUISANCE_RISK = 1e-6
NUISANCE_POINTS = 64
# With more discordant pairs, the sums take seconds, and differ from the normal approximation by
# less than anybody sees.
MANY_PAIRS = 1_000
# Probability omitted at each end of a sum over discordant counts.
OMITTED = 1e-12


# Accuracy: counts of discordant pairs


def discordant_pairs(candidate: np.ndarray, baseline: np.ndarray) -> tuple[int, int]:
    """Count the examples on which exactly one model is right.

    Args:
        candidate: Whether the candidate is right, bool, shape (n,).
        baseline: The same for the baseline, bool, shape (n,), in the same order.

    Returns:
        (gained, lost): only the candidate is right, only the baseline is right.

    Raises:
        ValueError: The shapes differ.
    """
    if candidate.shape != baseline.shape:
        raise ValueError(f"outcomes are not paired: {candidate.shape} and {baseline.shape}")
    return int((candidate & ~baseline).sum()), int((~candidate & baseline).sum())


def superiority_p(gained: int, lost: int, examples: int) -> float:
    """One-sided p-value for the hypothesis that the candidate is no more accurate.

    The exact unconditional test of two paired proportions (Suissa and Shuster 1991, Biometrics
    47:361): as `noninferiority_p` with a margin of 0, where the score statistic is McNemar's. It
    detects more than the conditional test (McNemar 1947, Psychometrika 12:153), and agrees with
    `difference_interval`, whose statistic it shares. Swap the counts to test for a regression.
    Of `are_many` pairs the statistic's normal approximation is used.

    Args:
        gained: Pairs in which only the candidate is right.
        lost: Pairs in which only the baseline is right.
        examples: All pairs.

    Returns:
        The p-value, in (0, 1].

    Raises:
        ValueError: The counts are negative or exceed `examples`.
    """
    check_counts(gained, lost, examples)
    if gained <= lost:
        return 1.0
    return _unconditional_p(gained, lost, examples, 0.0)


def noninferiority_p(gained: int, lost: int, examples: int, margin: float) -> float:
    """One-sided p-value for the hypothesis that accuracy is lower by `margin` or more.

    An exact unconditional test: outcomes are ordered by Tango's score statistic (Tango 1998,
    Statistics in Medicine 17:891), and the p-value is the largest probability, over all
    discordances, of an outcome at least as extreme (Sidik 2003, Statistics in Medicine 22:265).
    The discordance is searched within a 1 - 1e-6 confidence interval, and 1e-6 is added to the
    p-value in return (Berger and Boos 1994, JASA 89:1012). Tango's own p-value, a normal
    approximation, rejects too often when few pairs are discordant; of `are_many` it is used.

    Args:
        gained: Pairs in which only the candidate is right.
        lost: Pairs in which only the baseline is right.
        examples: All pairs.
        margin: The accepted drop in accuracy, in (0, 1).

    Returns:
        The p-value, in (0, 1].

    Raises:
        ValueError: The counts are negative or exceed `examples`, or the margin is outside (0, 1).
    """
    check_counts(gained, lost, examples)
    if not 0 < margin < 1:
        raise ValueError(f"margin {margin} is not between 0 and 1")
    return _unconditional_p(gained, lost, examples, margin)


def least_gains(
    examples: int, discordance: float, alpha: float, margin: float = 0.0
) -> Callable[[np.ndarray], np.ndarray]:
    """The fewest gains with which a claim passes, as a function of the discordant pairs.

    Args:
        examples: All pairs.
        discordance: Share of discordant pairs near which the function is needed: elsewhere the
            p-value's largest probability may be another one.
        alpha: One-sided error rate.
        margin: Of `noninferiority_p`; 0 for `superiority_p`.
    """
    statistic = _least_statistic(examples, max(round(discordance, 3), margin), alpha, margin)
    return lambda pairs: _gains_needed(pairs, examples, margin, statistic)


@functools.lru_cache(1024)
def _least_statistic(examples: int, discordance: float, alpha: float, margin: float) -> float:
    if are_many(round(discordance * examples), examples, margin):
        return float(stats.norm.isf(alpha))
    low, high = _clopper_pearson(round(discordance * examples), examples, NUISANCE_RISK)
    shares = np.linspace(max(low, margin), max(high, margin), NUISANCE_POINTS // 4)
    pairs = likely_counts(examples, shares.min(), shares.max())

    def excess(statistic: float) -> float:
        needed = _gains_needed(pairs, examples, margin, statistic)
        tail = _tail(pairs, examples, shares, needed, margin)
        return float(tail.max()) + NUISANCE_RISK - alpha

    # The statistic is discrete: the least one that passes, and a little more.
    return float(optimize.bisect(excess, 1e-3, 40.0, xtol=1e-3)) + 1e-3


def _unconditional_p(gained: int, lost: int, examples: int, margin: float) -> float:
    observed = float(score_statistic(gained, lost, examples, -margin))
    if are_many(gained + lost, examples, margin):
        return float(stats.norm.sf(observed))
    low, high = _clopper_pearson(gained + lost, examples, NUISANCE_RISK)
    shares = np.linspace(max(low, margin), max(high, margin), NUISANCE_POINTS)
    pairs = likely_counts(examples, shares.min(), shares.max())
    needed = _gains_needed(pairs, examples, margin, observed)
    tail = _tail(pairs, examples, shares, needed, margin)
    return float(min(1.0, tail.max() + NUISANCE_RISK))


def _tail(
    pairs: np.ndarray, examples: int, shares: np.ndarray, needed: np.ndarray, margin: float
) -> np.ndarray:
    """P(at least the needed gains) for each share of discordant pairs, if accuracy is lower by
    the margin; shape of `shares`."""
    shares = shares[:, None]
    gain_share = np.divide(
        shares - margin, 2 * shares, out=np.full_like(shares, 0.5), where=shares > 0
    )
    reached = stats.binom.sf(needed - 1, pairs, gain_share)
    return (stats.binom.pmf(pairs, examples, shares) * reached).sum(axis=1)


def are_many(pairs: int, examples: int, margin: float) -> bool:
    """Whether so many pairs are discordant, or would be if the models differed by the margin, that
    the tests use the normal approximation."""
    return max(pairs, margin * examples) > MANY_PAIRS


def score_statistic(
    gained: np.ndarray | int, lost: np.ndarray | int, examples: int, difference: float
) -> np.ndarray:
    """Tango's score statistic for a paired difference of proportions.

    For many pairs it is standard normal if the true difference of accuracies is `difference`, and
    large if it is higher (Tango 1998, Statistics in Medicine 17:891, equation 9).

    Args:
        gained: Pairs in which only the candidate is right; a count or an integer array.
        lost: Pairs in which only the baseline is right; the same shape.
        examples: All pairs, at least 1.
        difference: Candidate minus baseline under the hypothesis, in (-1, 1).

    Returns:
        The statistic, float64, in the shape of the counts; 0 for 0 / 0.
    """
    b, c, n, delta = np.asarray(gained, float), np.asarray(lost, float), examples, difference
    variance = np.maximum(n * (2 * shifted_lost_share(b, c, n, delta) + delta * (1 - delta)), 0)
    shift = b - c - n * delta
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(shift) < 1e-12, 0.0, shift / np.sqrt(variance))


def difference_interval(
    gained: int, lost: int, examples: int, confidence: float = 0.95
) -> Interval:
    """Two-sided confidence interval of a paired difference of accuracies.

    Tango's score interval (Tango 1998, Statistics in Medicine 17:891). Unlike the textbook (Wald)
    interval, it keeps its coverage with few discordant pairs, or none.

    Args:
        gained: Pairs in which only the candidate is right.
        lost: Pairs in which only the baseline is right.
        examples: All pairs, at least 1.
        confidence: Of the interval, in (0, 1).

    Returns:
        (low, high), within [-1, 1], with the observed difference inside.

    Raises:
        ValueError: The counts are negative or exceed `examples`, or `confidence` is outside (0, 1).
    """
    check_counts(gained, lost, examples)
    check_probability("confidence", confidence)
    z = float(stats.norm.isf((1 - confidence) / 2))
    observed, edge = (gained - lost) / examples, 1 - 1e-9

    def crossing(far: float, target: float) -> float:
        def gap(difference: float) -> float:
            return float(score_statistic(gained, lost, examples, difference)) - target

        if abs(observed) >= edge or gap(observed) * gap(far) > 0:
            return round(far)
        return float(optimize.brentq(gap, observed, far, xtol=1e-10))

    low = observed if observed <= -edge else crossing(-edge, z)
    high = observed if observed >= edge else crossing(edge, -z)
    return low, high


def wilson_interval(successes: int, examples: int, confidence: float = 0.95) -> Interval:
    """Two-sided confidence interval of one proportion (Wilson 1927, JASA 22:209).

    Args:
        successes: Number of right answers.
        examples: All examples, at least 1.
        confidence: Of the interval, in (0, 1).

    Returns:
        (low, high), within [0, 1].

    Raises:
        ValueError: The counts do not match, or `confidence` is outside (0, 1).
    """
    check_counts(successes, 0, examples)
    check_probability("confidence", confidence)
    low, high = proportion_confint(successes, examples, alpha=1 - confidence, method="wilson")
    # The formula's rounding can leave [0, 1] by one unit in the last place.
    return max(0.0, float(low)), min(1.0, float(high))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values for multiple testing (Holm 1979, Scand. J. Stat. 6:65).

    Args:
        p_values: One for each hypothesis, shape (m,), in [0, 1].

    Returns:
        Adjusted p-values, float64, shape (m,). If hypotheses with one of at most alpha are
        rejected, the probability of rejecting any true hypothesis is at most alpha.
    """
    # Not statsmodels' multipletests, which runs the garbage collector on every call: 0.1 s in a
    # large process. A test compares the two.
    values = np.asarray(p_values, float)
    order = np.argsort(values, kind="stable")
    steps = values[order] * (len(values) - np.arange(len(values)))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


# Helpers of the exact tests


def shifted_lost_share(
    gained: np.ndarray | int, lost: np.ndarray | int, examples: int, difference: float
) -> np.ndarray:
    """Maximum-likelihood share of lost pairs given a true difference: a quadratic's root."""
    linear = -gained - lost + (2 * examples - gained + lost) * difference
    constant = -lost * difference * (1 - difference)
    root = np.sqrt(np.maximum(linear**2 - 8 * examples * constant, 0))
    return (root - linear) / (4 * examples)


def _gains_needed(pairs: np.ndarray, examples: int, margin: float, observed: float) -> np.ndarray:
    """The fewest gains at least as extreme as observed, for each number of discordant pairs.

    The statistic rises with the gains among a fixed number of pairs, so bisection finds it.
    """
    low, high = np.zeros_like(pairs), pairs + 1
    while (low < high).any():
        middle = np.minimum((low + high) // 2, pairs)
        reached = score_statistic(middle, pairs - middle, examples, -margin) >= observed - 1e-9
        open_ = low < high
        high = np.where(open_ & reached, middle, high)
        low = np.where(open_ & ~reached, middle + 1, low)
    return low


def likely_counts(examples: int, low: float, high: float) -> np.ndarray:
    """The counts of a binomial with a share from `low` to `high`, without the outermost tails."""
    first = int(stats.binom.ppf(OMITTED, examples, low))
    last = int(stats.binom.isf(OMITTED, examples, high))
    return np.arange(max(first, 0), min(last, examples) + 1)


def _clopper_pearson(count: int, examples: int, risk: float) -> Interval:
    low, high = proportion_confint(count, examples, alpha=risk, method="beta")
    return float(low), float(high)


def check_counts(first: int, second: int, examples: int | None = None) -> None:
    """Raise ValueError for negative counts, or counts that exceed the number of examples."""
    if first < 0 or second < 0:
        raise ValueError(f"counts {first} and {second} must not be negative")
    if examples is not None and (examples < 1 or first + second > examples):
        raise ValueError(f"counts {first} and {second} do not match {examples} examples")


def check_probability(name: str, value: float) -> None:
    """Raise ValueError for a value outside (0, 1)."""
    if not 0 < value < 1:
        raise ValueError(f"{name} {value} is not between 0 and 1")
