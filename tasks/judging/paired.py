"""Statistics on two models that answered the same examples.

Every number that the gate decides by is computed here, from arrays alone. On accuracy only the
examples on which exactly one of the two is right carry information: *gained* (candidate right,
baseline wrong) and *lost* (the reverse). With them the tests are exact: their error rate holds at
any size of the test set, instead of only for large ones. Metrics that have no such structure
(macro precision, recall, F1) are compared by a paired bootstrap, seeded from the data, so that the
same outcomes always give the same verdict.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.proportion import proportion_confint

Metric = Literal["accuracy", "precision", "recall", "f1"]
Interval = tuple[float, float]

RESAMPLES = 9_999
# Gained and lost pairs that join the pool of the bootstrap.
ADDED_PAIRS = 1
# Chance, added to every p-value, that the discordance lies outside the range that is searched.
NUISANCE_RISK = 1e-6
NUISANCE_POINTS = 64
# Probability left out at either end when a sum over discordant counts is cut short.
CUT = 1e-12


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


def superiority_p(gained: int, lost: int) -> float:
    """One-sided p-value of "the candidate is no more accurate than the baseline".

    The exact McNemar test (McNemar 1947, Psychometrika 12:153): were the models equally good, each
    discordant pair would be a gain with probability one half. Ties, and no pairs at all, give a
    p-value above one half. Swap the arguments to test for harm.

    Args:
        gained: Pairs in which only the candidate is right.
        lost: Pairs in which only the baseline is right.

    Returns:
        P(at least so many gains), in (0, 1].

    Raises:
        ValueError: A count is negative.
    """
    _check_counts(gained, lost)
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue)


def noninferiority_p(gained: int, lost: int, examples: int, margin: float) -> float:
    """One-sided p-value of "the candidate's accuracy is lower by `margin` or more".

    An exact unconditional test: outcomes are ordered by Tango's score statistic (Tango 1998,
    Statistics in Medicine 17:891), and the p-value is the largest probability, over all
    discordances, of an outcome at least as extreme (Sidik 2003, Statistics in Medicine 22:265).
    The discordance is searched within a 1 - 1e-6 confidence interval, and 1e-6 is added to pay for
    that (Berger and Boos 1994, JASA 89:1012). Tango's own p-value, a normal approximation, errs too
    often when few pairs are discordant.

    Args:
        gained: Pairs in which only the candidate is right.
        lost: Pairs in which only the baseline is right.
        examples: All pairs.
        margin: The loss that is accepted, in (0, 1).

    Returns:
        The p-value, in (0, 1].

    Raises:
        ValueError: The counts are negative or exceed `examples`, or the margin is outside (0, 1).
    """
    _check_counts(gained, lost, examples)
    if not 0 < margin < 1:
        raise ValueError(f"margin {margin} is not between 0 and 1")
    observed = float(score_statistic(gained, lost, examples, -margin))
    low, high = _clopper_pearson(gained + lost, examples, NUISANCE_RISK)
    discordance = np.linspace(max(low, margin), max(high, margin), NUISANCE_POINTS)[:, None]
    pairs = _likely_counts(examples, discordance.min(), discordance.max())
    needed = _gains_needed(pairs, examples, margin, observed)
    gain_share = (discordance - margin) / (2 * discordance)
    tail = stats.binom.pmf(pairs, examples, discordance) * stats.binom.sf(
        needed - 1, pairs, gain_share
    )
    return float(min(1.0, tail.sum(axis=1).max() + NUISANCE_RISK))


def score_statistic(
    gained: np.ndarray | int, lost: np.ndarray | int, examples: int, difference: float
) -> np.ndarray:
    """Tango's score statistic for a paired difference of proportions.

    Standard normal, for many pairs, when the true difference of accuracies is `difference`; large
    when it is higher (Tango 1998, Statistics in Medicine 17:891, equation 9).

    Args:
        gained: Pairs in which only the candidate is right; a count or an integer array.
        lost: Pairs in which only the baseline is right; the same shape.
        examples: All pairs, at least 1.
        difference: Candidate minus baseline under the hypothesis, in (-1, 1).

    Returns:
        The statistic, float64, in the shape of the counts; 0 where it is 0 / 0.
    """
    b, c, n, delta = np.asarray(gained, float), np.asarray(lost, float), examples, difference
    variance = np.maximum(n * (2 * _lost_share(b, c, n, delta) + delta * (1 - delta)), 0)
    shift = b - c - n * delta
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(shift) < 1e-12, 0.0, shift / np.sqrt(variance))


def difference_interval(
    gained: int, lost: int, examples: int, confidence: float = 0.95
) -> Interval:
    """Two-sided confidence interval of a paired difference of accuracies.

    Tango's score interval (Tango 1998, Statistics in Medicine 17:891), which keeps its coverage
    where the textbook (Wald) interval does not: few discordant pairs, or none.

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
    _check_counts(gained, lost, examples)
    _check_probability("confidence", confidence)
    z = float(stats.norm.isf((1 - confidence) / 2))
    seen, edge = (gained - lost) / examples, 1 - 1e-9

    def crossing(far: float, target: float) -> float:
        def gap(difference: float) -> float:
            return float(score_statistic(gained, lost, examples, difference)) - target

        if abs(seen) >= edge or gap(seen) * gap(far) > 0:
            return round(far)
        return float(optimize.brentq(gap, seen, far, xtol=1e-10))

    low = seen if seen <= -edge else crossing(-edge, z)
    high = seen if seen >= edge else crossing(edge, -z)
    return low, high


def wilson_interval(successes: int, examples: int, confidence: float = 0.95) -> Interval:
    """Two-sided confidence interval of one proportion (Wilson 1927, JASA 22:209).

    Args:
        successes: Examples that are right.
        examples: All examples, at least 1.
        confidence: Of the interval, in (0, 1).

    Returns:
        (low, high), within [0, 1].

    Raises:
        ValueError: The counts do not fit, or `confidence` is outside (0, 1).
    """
    _check_counts(successes, 0, examples)
    _check_probability("confidence", confidence)
    low, high = proportion_confint(successes, examples, alpha=1 - confidence, method="wilson")
    # The formula's rounding can leave [0, 1] by one unit in the last place.
    return max(0.0, float(low)), min(1.0, float(high))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values for having looked at several things (Holm 1979, Scand. J. Stat. 6:65).

    Args:
        p_values: One for each hypothesis, shape (m,), in [0, 1].

    Returns:
        Adjusted p-values, float64, shape (m,): those at most alpha are rejected, and the chance
        that any of these was true is at most alpha.
    """
    # By hand: statsmodels' multipletests runs the garbage collector on every call, 0.1 s in a
    # large process. The tests hold the two together.
    values = np.asarray(p_values, float)
    order = np.argsort(values, kind="stable")
    steps = values[order] * (len(values) - np.arange(len(values)))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


# What a test set can show


def superiority_power(examples: int, discordance: float, gain: float, alpha: float) -> float:
    """Probability that the exact McNemar test proves a true gain in accuracy.

    Computed exactly, by summing over the number of discordant pairs (Duffy 1984, Biometrics
    40:1005), rather than by a normal approximation, which promises too much for small test sets.

    Args:
        examples: Size of the test set, at least 1.
        discordance: Share of examples on which exactly one model is right, at least `gain`.
        gain: True difference of accuracies, at least 0.
        alpha: One-sided error rate of the test.

    Returns:
        The power, in [0, 1].

    Raises:
        ValueError: A gain above the discordance, which cannot be, or shares outside [0, 1].
    """
    _check_counts(0, 0, examples)
    if not 0 <= gain <= discordance <= 1:
        raise ValueError(f"a gain of {gain} does not fit a discordance of {discordance}")
    if discordance == 0:
        return 0.0
    pairs = _likely_counts(examples, discordance, discordance)
    needed = stats.binom.isf(alpha, pairs, 0.5) + 1
    gain_share = (discordance + gain) / (2 * discordance)
    shown = stats.binom.sf(needed - 1, pairs, gain_share)
    return float((stats.binom.pmf(pairs, examples, discordance) * shown).sum())


def detectable_gain(
    examples: int, discordance: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The true gain in accuracy that a test set would have shown with probability `power`.

    It is about the test set, not about the outcome: a larger gain would probably have been seen,
    a smaller one may well be missed. By symmetry it is also the loss that would have been seen.

    Args:
        examples: Size of the test set, at least 1.
        discordance: Share of examples on which exactly one model is right. A gain above it raises
            it to the gain: every discordant pair is then a gained one.
        alpha: One-sided error rate of the exact McNemar test.
        power: The probability asked for.

    Returns:
        The gain, to four digits; None where no gain would be shown (a handful of examples).

    Raises:
        ValueError: Shares or probabilities outside [0, 1].
    """
    _check_probability("alpha", alpha)
    _check_probability("power", power)

    def lacking(gain: float) -> float:
        return power - superiority_power(examples, max(discordance, gain), gain, alpha)

    if lacking(1.0) > 0:
        return None
    return round(float(optimize.brentq(lacking, 0.0, 1.0, xtol=1e-6)), 4)


def detectable_by_error(
    standard_error: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The true gain that would have been shown with probability `power`, for any metric.

    By the normal approximation, (z_alpha + z_power) standard errors: for metrics whose power no
    exact formula gives (Efron and Tibshirani 1993, chapter 13, for the standard error).

    Args:
        standard_error: Of the paired difference, as `bootstrap_difference` gives it.
        alpha: One-sided error rate of the test.
        power: The probability asked for.

    Returns:
        The gain; None where the standard error is 0 or the gain would be above 1.

    Raises:
        ValueError: A probability outside (0, 1).
    """
    _check_probability("alpha", alpha)
    _check_probability("power", power)
    gain = standard_error * float(stats.norm.isf(alpha) + stats.norm.isf(1 - power))
    return round(gain, 4) if 0 < gain <= 1 else None


def least_examples(margin: float, alpha: float = 0.05) -> int:
    """Fewest examples with which "not worse by more than `margin`" can be shown at all.

    With fewer, even two models that agree on every example prove nothing: a model that is worse by
    the margin would look the same with probability (1 - margin)^n above alpha (the rule of three:
    Hanley and Lippman-Hand 1983, JAMA 249:1743).

    Args:
        margin: The loss that is accepted, in (0, 1).
        alpha: One-sided error rate, in (0, 1).

    Returns:
        The number of examples.

    Raises:
        ValueError: A value outside (0, 1).
    """
    _check_probability("margin", margin)
    _check_probability("alpha", alpha)
    return math.ceil(math.log(alpha) / math.log1p(-margin))


# Other metrics: the paired bootstrap


@dataclass(frozen=True)
class Comparison:
    """Two models by one metric.

    Attributes:
        candidate, baseline: The metric's value for each.
        difference: Candidate minus baseline.
        interval: Confidence interval of the difference.
        p_value: One-sided, of "the difference is at most the null value".
        standard_error: Of the difference.
    """

    candidate: float
    baseline: float
    difference: float
    interval: Interval
    p_value: float
    standard_error: float


def bootstrap_difference(
    truth: np.ndarray,
    candidate: np.ndarray,
    baseline: np.ndarray,
    metric: Metric,
    *,
    null: float = 0.0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two models by a metric, by resampling examples with both models' answers.

    The interval is the percentile bootstrap's (Efron and Tibshirani 1993, chapter 13; for paired
    models in language processing Berg-Kirkpatrick et al. 2012, EMNLP). The p-value is a bootstrap
    under the hypothesis (same, chapter 16): gained and lost pairs are drawn as often as is
    likeliest were the hypothesis true of accuracy (Tango 1998, Statistics in Medicine 17:891), and
    the spread of the metric is taken from there. The plain bootstrap takes it from the outcome,
    which is too small just when chance favoured the candidate: with 15 discordant pairs a model
    that is worse by the margin passed in 6.8% of trials instead of 5%.

    One gained and one lost pair, spread over the labels by their share, join the pool that is drawn
    from (in the spirit of Agresti and Min 2005, Statistics in Medicine 24:729): without them two
    models that agree on a few examples would count as equal beyond doubt. The random state comes
    from the outcomes themselves, whatever their order.

    Args:
        truth: The right labels, strings, shape (n,).
        candidate: The candidate's answers, shape (n,).
        baseline: The baseline's answers, shape (n,).
        metric: `accuracy`, or `precision`, `recall`, `f1`, macro-averaged over the labels that are
            present in truth; 0 / 0 counts as 0.
        null: The difference that is to be refuted: 0 for "better", minus the margin for
            "not worse".
        confidence: Of the two-sided interval, in (0, 1).
        resamples: How many; the p-value is no finer than 1 / (resamples + 1).

    Returns:
        The comparison; its p-value is in (0, 1].

    Raises:
        ValueError: Shapes differ, there are no examples, or `confidence` is outside (0, 1).
    """
    _check_probability("confidence", confidence)
    cells = _count_cells(truth, candidate, baseline)
    ours, theirs = _metric_of_counts(cells, cells.counts[None, :], metric)
    seen = float(ours[0] - theirs[0])
    differences = _differences(cells, cells.pool, metric, resamples)
    hypothesis = _pool_under(cells, null)
    left, right = _metric_of_counts(cells, hypothesis[None, :], metric)
    by_chance = _differences(cells, hypothesis, metric, resamples) - (left - right)
    extreme = int((by_chance >= seen - null - 1e-9).sum())
    return Comparison(
        candidate=float(ours[0]),
        baseline=float(theirs[0]),
        difference=seen,
        interval=_percentiles(differences, seen, confidence),
        p_value=(1 + extreme) / (1 + resamples),
        standard_error=float(differences.std(ddof=1)),
    )


def bootstrap_interval(
    truth: np.ndarray,
    predicted: np.ndarray,
    metric: Metric,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Two-sided confidence interval of one model's metric, by the percentile bootstrap.

    As in `bootstrap_difference` a right and a wrong answer join the pool (for one proportion:
    Agresti and Coull 1998, American Statistician 52:119), so that a model without a mistake on few
    examples is not called perfect.

    Args:
        truth: The right labels, strings, shape (n,).
        predicted: The model's answers, shape (n,).
        metric: As in `bootstrap_difference`.
        confidence: Of the interval, in (0, 1).
        resamples: How many.

    Returns:
        (low, high), within [0, 1], with the observed value inside.

    Raises:
        ValueError: Shapes differ, there are no examples, or `confidence` is outside (0, 1).
    """
    _check_probability("confidence", confidence)
    cells = _count_cells(truth, predicted, predicted)
    seen = float(_metric_of_counts(cells, cells.counts[None, :], metric)[0][0])
    blocks = _resample(cells, cells.pool, resamples)
    draws = [_metric_of_counts(cells, block, metric)[0] for block in blocks]
    return _percentiles(np.concatenate(draws), seen, confidence)


@dataclass(frozen=True)
class _Cells:
    """The distinct (truth, candidate, baseline) triples: all that a resample is made of.

    Attributes:
        counts: How often each occurs, int64, shape (cells,).
        pool: Its share in the pool that is drawn from, float64, shape (cells,).
        truth, candidate, baseline: One-hot labels, float64, shape (cells, labels); an answer that
            is no label of the truth is a row of zeros.
        seed: Drawn from the counts.
    """

    counts: np.ndarray
    pool: np.ndarray
    truth: np.ndarray
    candidate: np.ndarray
    baseline: np.ndarray
    seed: int


def _count_cells(truth: np.ndarray, candidate: np.ndarray, baseline: np.ndarray) -> _Cells:
    if not truth.shape == candidate.shape == baseline.shape or truth.ndim != 1:
        raise ValueError(f"not paired: {truth.shape}, {candidate.shape}, {baseline.shape}")
    if truth.size == 0:
        raise ValueError("no examples")
    labels, support = np.unique(truth.astype(str), return_counts=True)
    places = {label: place for place, label in enumerate(labels.tolist())}
    elsewhere = len(labels)
    coded = np.array(
        [
            [places.get(label, elsewhere) for label in answers.astype(str).tolist()]
            for answers in (truth, candidate, baseline)
        ]
    ).T
    found, counts = np.unique(coded, axis=0, return_counts=True)
    each = np.arange(elsewhere)
    wrong = np.roll(each, -1) if elsewhere > 1 else each + 1
    gained = np.stack([each, each, wrong], axis=1)
    lost = np.stack([each, wrong, each], axis=1)
    share = support / support.sum()
    triples = np.concatenate([found, gained, lost])
    weights = np.concatenate([counts, ADDED_PAIRS * share, ADDED_PAIRS * share])
    hot = np.vstack([np.eye(elsewhere), np.zeros(elsewhere)])
    state = hashlib.sha256(found.astype("<i8").tobytes() + counts.astype("<i8").tobytes())
    return _Cells(
        counts=np.concatenate([counts, np.zeros(2 * elsewhere, counts.dtype)]),
        pool=weights / weights.sum(),
        truth=hot[triples[:, 0]],
        candidate=hot[triples[:, 1]],
        baseline=hot[triples[:, 2]],
        seed=int.from_bytes(state.digest()[:16], "little"),
    )


def _pool_under(cells: _Cells, null: float) -> np.ndarray:
    """The pool, with the shares of gained and lost pairs that are likeliest under a hypothesis."""
    ours = (cells.truth * cells.candidate).sum(axis=1) > 0
    theirs = (cells.truth * cells.baseline).sum(axis=1) > 0
    gained, lost = ours & ~theirs, ~ours & theirs
    n = int(cells.counts.sum())
    lost_share = float(
        _lost_share(int(cells.counts[gained].sum()), int(cells.counts[lost].sum()), n, null)
    )
    gained_share = max(lost_share + null, 0.0)
    pool = cells.pool.copy()
    for rows, share in (
        (gained, gained_share),
        (lost, lost_share),
        (~gained & ~lost, max(1 - gained_share - lost_share, 0.0)),
    ):
        if rows.any():
            pool[rows] *= share / pool[rows].sum()
    return pool / pool.sum()


def _differences(cells: _Cells, pool: np.ndarray, metric: Metric, resamples: int) -> np.ndarray:
    draws = [_metric_of_counts(cells, block, metric) for block in _resample(cells, pool, resamples)]
    return np.concatenate([left - right for left, right in draws])


def _resample(cells: _Cells, pool: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """Counts of resampled test sets, block by block, so that memory stays flat."""
    random = np.random.default_rng(cells.seed)
    block = max(1, 2_000_000 // len(pool))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield random.multinomial(int(cells.counts.sum()), pool, size=size)


def _metric_of_counts(
    cells: _Cells, counts: np.ndarray, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """The metric of both models on each of several test sets; `counts` has shape (sets, cells)."""
    weights = counts.astype(float)
    support = weights @ cells.truth
    present = support > 0

    def of(answers: np.ndarray) -> np.ndarray:
        hits = weights @ (cells.truth * answers)
        if metric == "accuracy":
            return hits.sum(axis=1) / support.sum(axis=1)
        given = weights @ answers
        top, bottom = {
            "precision": (hits, given),
            "recall": (hits, support),
            "f1": (2 * hits, given + support),
        }[metric]
        by_label = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        return (by_label * present).sum(axis=1) / present.sum(axis=1)

    return of(cells.candidate), of(cells.baseline)


def _percentiles(draws: np.ndarray, seen: float, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return min(float(low), seen), max(float(high), seen)


# Helpers of the exact tests


def _lost_share(
    gained: np.ndarray | int, lost: np.ndarray | int, examples: int, difference: float
) -> np.ndarray:
    """The likeliest share of lost pairs, were `difference` true: the root of a quadratic."""
    linear = -gained - lost + (2 * examples - gained + lost) * difference
    constant = -lost * difference * (1 - difference)
    root = np.sqrt(np.maximum(linear**2 - 8 * examples * constant, 0))
    return (root - linear) / (4 * examples)


def _gains_needed(pairs: np.ndarray, examples: int, margin: float, observed: float) -> np.ndarray:
    """For each number of discordant pairs, the fewest gains at least as extreme as observed.

    The statistic rises with the gains among a fixed number of pairs, so bisection finds them.
    """
    low, high = np.zeros_like(pairs), pairs + 1
    while (low < high).any():
        middle = np.minimum((low + high) // 2, pairs)
        reached = score_statistic(middle, pairs - middle, examples, -margin) >= observed - 1e-9
        open_ = low < high
        high = np.where(open_ & reached, middle, high)
        low = np.where(open_ & ~reached, middle + 1, low)
    return low


def _likely_counts(examples: int, low: float, high: float) -> np.ndarray:
    """All counts that a binomial with a share from `low` to `high` gives, but for `CUT`."""
    first = int(stats.binom.ppf(CUT, examples, low))
    last = int(stats.binom.isf(CUT, examples, high))
    return np.arange(max(first, 0), min(last, examples) + 1)


def _clopper_pearson(count: int, examples: int, risk: float) -> Interval:
    low, high = proportion_confint(count, examples, alpha=risk, method="beta")
    return float(low), float(high)


def _check_counts(first: int, second: int, examples: int | None = None) -> None:
    if first < 0 or second < 0:
        raise ValueError(f"counts {first} and {second} must not be negative")
    if examples is not None and (examples < 1 or first + second > examples):
        raise ValueError(f"counts {first} and {second} do not fit {examples} examples")


def _check_probability(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} {value} is not between 0 and 1")
