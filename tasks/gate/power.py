"""Statistical power: which gain a test set detects, and how many examples a margin needs."""

from __future__ import annotations

import math

from scipy import optimize, stats

from tasks.gate.exact_tests import (
    check_counts,
    check_probability,
    least_gains,
    likely_counts,
)


def superiority_power(examples: int, discordance: float, gain: float, alpha: float) -> float:
    """Probability that `exact_tests.superiority_p` detects a true gain in accuracy.

    Computed by summing over the number of discordant pairs (as Duffy 1984, Biometrics 40:1005, does
    for the conditional test), rather than by a normal approximation, which is too optimistic for
    small test sets.

    Args:
        examples: Size of the test set, at least 1.
        discordance: Share of examples on which exactly one model is right, at least `gain`.
        gain: True difference of accuracies, at least 0.
        alpha: One-sided error rate of the test.

    Returns:
        The power, in [0, 1].

    Raises:
        ValueError: The gain exceeds the discordance, or a share is outside [0, 1].
    """
    check_counts(0, 0, examples)
    if not 0 <= gain <= discordance <= 1:
        raise ValueError(f"a gain of {gain} is impossible with a discordance of {discordance}")
    if discordance == 0:
        return 0.0
    pairs = likely_counts(examples, discordance, discordance)
    needed = least_gains(examples, discordance, alpha)(pairs)
    gain_share = (discordance + gain) / (2 * discordance)
    detected = stats.binom.sf(needed - 1, pairs, gain_share)
    return float((stats.binom.pmf(pairs, examples, discordance) * detected).sum())


def equal_passes(examples: int, discordance: float, margin: float, alpha: float = 0.05) -> float:
    """Probability that an equally good candidate passes "not worse by more than `margin`".

    Computed as in `superiority_power`, by `exact_tests.noninferiority_p`.

    Args:
        examples: Size of the test set, at least 1.
        discordance: Share of examples on which exactly one model is right.
        margin: The accepted drop, in (0, 1).
        alpha: One-sided error rate of the test.

    Raises:
        ValueError: A share outside its range.
    """
    check_counts(0, 0, examples)
    check_probability("margin", margin)
    check_probability("alpha", alpha)
    if examples < least_examples(margin, alpha):
        return 0.0
    pairs = likely_counts(examples, discordance, discordance)
    needed = least_gains(examples, discordance, alpha, margin)(pairs)
    passed = stats.binom.sf(needed - 1, pairs, 0.5)
    return float((stats.binom.pmf(pairs, examples, discordance) * passed).sum())


def equal_passes_by_error(standard_error: float, margin: float, alpha: float = 0.05) -> float:
    """As `equal_passes`, for any metric, by the normal approximation.

    Args:
        standard_error: Of the paired difference, above 0.
        margin: In the metric's unit.
        alpha: One-sided error rate of the test.
    """
    return float(stats.norm.cdf(margin / standard_error - stats.norm.isf(alpha)))


def examples_for(
    examples: int, standard_error: float, margin: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """About how many examples an equally good candidate needs to pass with probability `power`.

    By the normal approximation: the standard error falls with the root of the number of examples.

    Args:
        examples: Size of the test set.
        standard_error: Of the paired difference on it.
        margin: In the metric's unit, above 0.
        alpha: One-sided error rate of the test.
        power: The probability.
    """
    wanted = margin / float(stats.norm.isf(alpha) + stats.norm.isf(1 - power))
    return max(math.ceil(examples * (standard_error / wanted) ** 2), 1)


def of_equal(
    examples: int, standard_error: float, margin: float, alpha: float
) -> dict[str, float | int]:
    """The fields of `MetricComparison` on an equally good candidate, for any metric; none for a
    margin of 0, or without a spread."""
    if margin <= 0 or not standard_error:
        return {}
    return {
        "equal_passes": equal_passes_by_error(standard_error, margin, alpha),
        "examples_needed": examples_for(examples, standard_error, margin, alpha),
    }


def detectable_gain(
    examples: int, discordance: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The true gain in accuracy that a test set detects with probability `power`.

    It describes the test set, not the outcome: a larger gain would probably be detected, a smaller
    one may well be missed. By symmetry it is also the drop that would be detected.

    Args:
        examples: Size of the test set, at least 1.
        discordance: Share of examples on which exactly one model is right. A gain above it raises
            it to the gain: every discordant pair is then a gained one.
        alpha: One-sided error rate of the exact test.
        power: The probability of detection, in (0, 1).

    Returns:
        The gain, to four digits; None if no gain would be detected (a handful of examples).

    Raises:
        ValueError: Shares or probabilities outside [0, 1].
    """
    check_probability("alpha", alpha)
    check_probability("power", power)

    def lacking(gain: float) -> float:
        return power - superiority_power(examples, max(discordance, gain), gain, alpha)

    if lacking(1.0) > 0:
        return None
    return round(float(optimize.brentq(lacking, 0.0, 1.0, xtol=1e-6)), 4)


def detectable_by_error(
    standard_error: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The true gain that a test detects with probability `power`, for any metric.

    By the normal approximation, (z_alpha + z_power) standard errors, for metrics whose power has no
    exact formula (Efron and Tibshirani 1993, chapter 13, for the standard error).

    Args:
        standard_error: Of the paired difference, as `bootstrap_difference` gives it.
        alpha: One-sided error rate of the test.
        power: The probability of detection, in (0, 1).

    Returns:
        The gain; None if the standard error is 0 or the gain would be above 1.

    Raises:
        ValueError: A probability outside (0, 1).
    """
    check_probability("alpha", alpha)
    check_probability("power", power)
    gain = standard_error * float(stats.norm.isf(alpha) + stats.norm.isf(1 - power))
    return round(gain, 4) if 0 < gain <= 1 else None


def least_examples(margin: float, alpha: float = 0.05) -> int:
    """The fewest examples that can show "not worse by more than `margin`".

    With fewer, even two models that agree on every example prove nothing: a model that is worse by
    the margin would look the same with a probability, (1 - margin)^n, above alpha (the rule of
    three: Hanley and Lippman-Hand 1983, JAMA 249:1743).

    Args:
        margin: The accepted drop, in (0, 1).
        alpha: One-sided error rate, in (0, 1).

    Returns:
        The number of examples.

    Raises:
        ValueError: A value outside (0, 1).
    """
    check_probability("margin", margin)
    check_probability("alpha", alpha)
    return math.ceil(math.log(alpha) / math.log1p(-margin))
