"""The paired bootstrap of accuracy and of macro-averaged precision, recall and F1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse, stats

from tasks.gate.exact_tests import Interval, check_probability, shifted_lost_share
from tasks.gate.resampling import MANY_EXAMPLES, RESAMPLES, seed_of

Metric = Literal["accuracy", "precision", "recall", "f1"]

# Gained pairs, and as many lost pairs, that are added to the pool of the bootstrap.
ADDED_PAIRS = 1
FEWER_RESAMPLES = 1_999


@dataclass(frozen=True)
class Comparison:
    """Two models compared by one metric.

    Attributes:
        candidate, baseline: The metric's value for each.
        difference: Candidate minus baseline.
        interval: Confidence interval of the difference.
        p_value: One-sided, for the hypothesis that the difference is at most the null value.
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
    groups: np.ndarray | None = None,
) -> Comparison:
    """Compare two models by a metric, resampling examples together with both models' answers.

    The interval is the percentile interval (Efron and Tibshirani 1993, chapter 13; for paired
    models in language processing Berg-Kirkpatrick et al. 2012, EMNLP). The p-value is a bootstrap
    under the null hypothesis (same, chapter 16): gained and lost pairs are drawn with their
    maximum-likelihood shares if the null value were the true difference in accuracy (Tango 1998,
    Statistics in Medicine 17:891), and the spread of the metric is taken from these draws. The
    plain bootstrap takes the spread from the outcome, which is too small exactly when chance
    favored the candidate: with 15 discordant pairs, a model that is worse by the margin passed in
    6.8% of trials instead of 5%. For "better", both models' answers are also exchanged at random
    (Yeh 2000, COLING), and the larger p-value counts.

    One gained and one lost pair, spread over the labels by their share, are added to the pool (in
    the spirit of Agresti and Min 2005, Statistics in Medicine 24:729): without them, two models
    that agree on a few examples would count as certainly equal. The random seed depends on the
    outcomes, not on their order.

    Args:
        truth: The right labels, strings, shape (n,).
        candidate: The candidate's predictions, shape (n,).
        baseline: The baseline's predictions, shape (n,).
        metric: `accuracy`, or `precision`, `recall`, `f1`, macro-averaged over the labels that are
            present in truth; 0 / 0 counts as 0.
        null: The difference to refute: 0 for "better", minus the margin for "not worse".
        confidence: Of the two-sided interval, in (0, 1).
        resamples: Number of resamples; the smallest p-value is 1 / (resamples + 1).
        groups: A whole number for each example, equal for those that belong together, which are
            drawn and exchanged together; None if none do. The p-value is then the larger of the
            bootstrap's and of Student's t with its standard error.

    Returns:
        The comparison; its p-value is in (0, 1].

    Raises:
        ValueError: Shapes differ, there are no examples, or `confidence` is outside (0, 1).
    """
    check_probability("confidence", confidence)
    cells = _count_cells(truth, candidate, baseline)
    # Of so many examples, fewer resamples tell as much as anybody can use.
    resamples = min(resamples, FEWER_RESAMPLES) if len(truth) > MANY_EXAMPLES else resamples
    ours, theirs = _metric_of_counts(cells, cells.counts[None, :], metric)
    observed = float(ours[0] - theirs[0])
    if groups is None:
        differences = _differences(cells, cells.pool, metric, resamples)
        hypothesis = _pool_under(cells, null)
        left, right = _metric_of_counts(cells, hypothesis[None, :], metric)
        by_chance = _differences(cells, hypothesis, metric, resamples) - (left - right)
    else:
        counts = _count_groups(cells, groups)
        differences = _group_differences(cells, counts, metric, resamples)
        by_chance = differences - observed
    spread = float(differences.std(ddof=1))
    p_value = _share(by_chance >= observed - null - 1e-9)
    if groups is not None:
        p_value = max(p_value, _student_p(observed - null, spread, counts.shape[0], null))
    if not null:
        exchanged = _exchanged(cells, None if groups is None else counts, metric, resamples)
        p_value = max(p_value, _share(exchanged >= observed - 1e-9))
    return Comparison(
        candidate=float(ours[0]),
        baseline=float(theirs[0]),
        difference=observed,
        interval=_percentiles(differences, observed, confidence),
        p_value=p_value,
        standard_error=spread,
    )


def bootstrap_interval(
    truth: np.ndarray,
    predicted: np.ndarray,
    metric: Metric,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Two-sided confidence interval of one model's metric, by the percentile bootstrap.

    As in `bootstrap_difference`, a right and a wrong answer are added to the pool (for one
    proportion: Agresti and Coull 1998, American Statistician 52:119), so that a model without a
    mistake on few examples does not count as perfect.

    Args:
        truth: The right labels, strings, shape (n,).
        predicted: The model's predictions, shape (n,).
        metric: As in `bootstrap_difference`.
        confidence: Of the interval, in (0, 1).
        resamples: Number of resamples.

    Returns:
        (low, high), within [0, 1], with the observed value inside.

    Raises:
        ValueError: Shapes differ, there are no examples, or `confidence` is outside (0, 1).
    """
    check_probability("confidence", confidence)
    cells = _count_cells(truth, predicted, predicted)
    observed = float(_metric_of_counts(cells, cells.counts[None, :], metric)[0][0])
    blocks = _resample(cells, cells.pool, resamples)
    draws = [_metric_of_counts(cells, block, metric)[0] for block in blocks]
    return _percentiles(np.concatenate(draws), observed, confidence)


@dataclass(frozen=True)
class _Cells:
    """The distinct (truth, candidate, baseline) triples of labels, which resamples count.

    Attributes:
        counts: How often each triple occurs, int64, shape (cells,).
        pool: Its share in the pool to draw from, float64, shape (cells,).
        truth, candidate, baseline: One-hot labels, float64, shape (cells, labels); a prediction
            that is not a label in truth is a row of zeros.
        of_row: Each example's triple, int64, shape (n,).
        seed: Derived from the counts.
    """

    counts: np.ndarray
    pool: np.ndarray
    truth: np.ndarray
    candidate: np.ndarray
    baseline: np.ndarray
    of_row: np.ndarray
    seed: int


def _count_cells(truth: np.ndarray, candidate: np.ndarray, baseline: np.ndarray) -> _Cells:
    if not truth.shape == candidate.shape == baseline.shape or truth.ndim != 1:
        raise ValueError(f"not paired: {truth.shape}, {candidate.shape}, {baseline.shape}")
    if truth.size == 0:
        raise ValueError("no examples")
    labels, support = np.unique(truth.astype(str), return_counts=True)
    other = len(labels)
    coded = np.stack([_codes(labels, column) for column in (truth, candidate, baseline)])
    # One number for each triple: whole rows are slow to sort.
    width = (other + 1, other + 1, other + 1)
    numbers, of_row, counts = np.unique(
        np.ravel_multi_index(coded, width), return_inverse=True, return_counts=True
    )
    found = np.stack(np.unravel_index(numbers, width), axis=1)
    each = np.arange(other)
    wrong = np.roll(each, -1) if other > 1 else each + 1
    gained = np.stack([each, each, wrong], axis=1)
    lost = np.stack([each, wrong, each], axis=1)
    share = support / support.sum()
    triples = np.concatenate([found, gained, lost])
    weights = np.concatenate([counts, ADDED_PAIRS * share, ADDED_PAIRS * share])
    one_hot = np.vstack([np.eye(other), np.zeros(other)])
    return _Cells(
        counts=np.concatenate([counts, np.zeros(2 * other, counts.dtype)]),
        pool=weights / weights.sum(),
        truth=one_hot[triples[:, 0]],
        candidate=one_hot[triples[:, 1]],
        baseline=one_hot[triples[:, 2]],
        of_row=of_row,
        seed=seed_of(found.astype("<i8").tobytes(), counts.astype("<i8").tobytes()),
    )


def _codes(labels: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The place of each value in sorted labels; their number for a value that is none of them."""
    values = column.astype(str)
    places = np.minimum(np.searchsorted(labels, values), len(labels) - 1)
    return np.where(labels[places] == values, places, len(labels))


def _count_groups(cells: _Cells, groups: np.ndarray) -> sparse.csr_array:
    """How often each triple occurs in each group, shape (groups, cells)."""
    _, codes = np.unique(groups, return_inverse=True)
    ones = np.ones(len(codes))
    shape = (int(codes.max()) + 1, len(cells.counts))
    return sparse.csr_array((ones, (codes, cells.of_row)), shape=shape)


def _group_differences(
    cells: _Cells, counts: sparse.csr_array, metric: Metric, resamples: int
) -> np.ndarray:
    groups = counts.shape[0]
    share = np.full(groups, 1 / groups)
    found = []
    for size, random in _blocks(cells, max(groups, counts.shape[1]), resamples):
        drawn = random.multinomial(groups, share, size=size) @ counts
        left, right = _metric_of_counts(cells, drawn, metric)
        found.append(left - right)
    return np.concatenate(found)


def _exchanged(
    cells: _Cells, counts: sparse.csr_array | None, metric: Metric, resamples: int
) -> np.ndarray:
    """Differences after exchanging both models' answers to random examples, or groups of them."""
    found = []
    units = len(cells.counts) if counts is None else max(counts.shape)
    for size, random in _blocks(cells, units, resamples):
        if counts is None:
            exchanged = random.binomial(cells.counts, 0.5, size=(size, len(cells.counts)))
        else:
            exchanged = random.integers(0, 2, (size, counts.shape[0])) @ counts
        left, right = _metric_of_counts(cells, cells.counts - exchanged, metric, exchanged)
        found.append(left - right)
    return np.concatenate(found)


def _student_p(excess: float, spread: float, groups: int, null: float) -> float:
    if not spread:
        # Groups that all agree: see `power.least_examples`.
        return min(1.0, float((1 + null) ** groups)) if excess > 0 else 1.0
    return float(stats.t.sf(excess / spread, max(groups - 1, 1)))


def _share(extreme: np.ndarray) -> float:
    return float((1 + extreme.sum()) / (1 + len(extreme)))


def _pool_under(cells: _Cells, null: float) -> np.ndarray:
    """The pool with the maximum-likelihood shares of gained and lost pairs for a difference."""
    ours = (cells.truth * cells.candidate).sum(axis=1) > 0
    theirs = (cells.truth * cells.baseline).sum(axis=1) > 0
    gained, lost = ours & ~theirs, ~ours & theirs
    n = int(cells.counts.sum())
    lost_share = float(
        shifted_lost_share(int(cells.counts[gained].sum()), int(cells.counts[lost].sum()), n, null)
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
    """Counts of resampled test sets, in blocks of bounded memory."""
    for size, random in _blocks(cells, len(pool), resamples):
        yield random.multinomial(int(cells.counts.sum()), pool, size=size)


def _blocks(cells: _Cells, width: int, resamples: int) -> Iterator[tuple[int, np.random.Generator]]:
    random = np.random.default_rng(cells.seed)
    block = max(1, 2_000_000 // width)
    for start in range(0, resamples, block):
        yield min(block, resamples - start), random


def _metric_of_counts(
    cells: _Cells, counts: np.ndarray, metric: Metric, exchanged: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Both models' metric on each of several test sets.

    Args:
        cells: The triples.
        counts: How often each occurs, shape (sets, cells).
        metric: Which.
        exchanged: How often each occurs with both models' answers exchanged, besides.
    """
    weights = counts.astype(float)
    swapped = np.zeros_like(weights) if exchanged is None else exchanged.astype(float)
    support = (weights + swapped) @ cells.truth
    present = support > 0

    def value(predicted: np.ndarray, other: np.ndarray) -> np.ndarray:
        hits = weights @ (cells.truth * predicted)
        predictions = weights @ predicted
        if exchanged is not None:
            hits += swapped @ (cells.truth * other)
            predictions += swapped @ other
        if metric == "accuracy":
            return hits.sum(axis=1) / support.sum(axis=1)
        top, bottom = {
            "precision": (hits, predictions),
            "recall": (hits, support),
            "f1": (2 * hits, predictions + support),
        }[metric]
        by_label = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        return (by_label * present).sum(axis=1) / present.sum(axis=1)

    return value(cells.candidate, cells.baseline), value(cells.baseline, cells.candidate)


def _percentiles(draws: np.ndarray, observed: float, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return min(float(low), observed), max(float(high), observed)
