"""The paired bootstrap of accuracy and of macro-averaged precision, recall and F1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.gate.exact_tests import Interval, check_probability, shifted_lost_share
from tasks.gate.resampling import RESAMPLES, seed_of

Metric = Literal["accuracy", "precision", "recall", "f1"]

# Gained pairs, and as many lost pairs, that are added to the pool of the bootstrap.
ADDED_PAIRS = 1


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
) -> Comparison:
    """Compare two models by a metric, resampling examples together with both models' answers.

    The interval is the percentile interval (Efron and Tibshirani 1993, chapter 13; for paired
    models in language processing Berg-Kirkpatrick et al. 2012, EMNLP). The p-value is a bootstrap
    under the null hypothesis (same, chapter 16): gained and lost pairs are drawn with their
    maximum-likelihood shares if the null value were the true difference in accuracy (Tango 1998,
    Statistics in Medicine 17:891), and the spread of the metric is taken from these draws. The
    plain bootstrap takes the spread from the outcome, which is too small exactly when chance
    favored the candidate: with 15 discordant pairs, a model that is worse by the margin passed in
    6.8% of trials instead of 5%.

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

    Returns:
        The comparison; its p-value is in (0, 1].

    Raises:
        ValueError: Shapes differ, there are no examples, or `confidence` is outside (0, 1).
    """
    check_probability("confidence", confidence)
    cells = _count_cells(truth, candidate, baseline)
    ours, theirs = _metric_of_counts(cells, cells.counts[None, :], metric)
    observed = float(ours[0] - theirs[0])
    differences = _differences(cells, cells.pool, metric, resamples)
    hypothesis = _pool_under(cells, null)
    left, right = _metric_of_counts(cells, hypothesis[None, :], metric)
    by_chance = _differences(cells, hypothesis, metric, resamples) - (left - right)
    extreme = int((by_chance >= observed - null - 1e-9).sum())
    return Comparison(
        candidate=float(ours[0]),
        baseline=float(theirs[0]),
        difference=observed,
        interval=_percentiles(differences, observed, confidence),
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
        seed: Derived from the counts.
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
    codes = {label: code for code, label in enumerate(labels.tolist())}
    other = len(labels)
    coded = np.array(
        [
            [codes.get(label, other) for label in column.astype(str).tolist()]
            for column in (truth, candidate, baseline)
        ]
    ).T
    found, counts = np.unique(coded, axis=0, return_counts=True)
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
        seed=seed_of(found.astype("<i8").tobytes(), counts.astype("<i8").tobytes()),
    )


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
    random = np.random.default_rng(cells.seed)
    block = max(1, 2_000_000 // len(pool))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield random.multinomial(int(cells.counts.sum()), pool, size=size)


def _metric_of_counts(
    cells: _Cells, counts: np.ndarray, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """Both models' metric on each of several test sets; `counts` has shape (sets, cells)."""
    weights = counts.astype(float)
    support = weights @ cells.truth
    present = support > 0

    def value(predicted: np.ndarray) -> np.ndarray:
        hits = weights @ (cells.truth * predicted)
        if metric == "accuracy":
            return hits.sum(axis=1) / support.sum(axis=1)
        predictions = weights @ predicted
        top, bottom = {
            "precision": (hits, predictions),
            "recall": (hits, support),
            "f1": (2 * hits, predictions + support),
        }[metric]
        by_label = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        return (by_label * present).sum(axis=1) / present.sum(axis=1)

    return value(cells.candidate), value(cells.baseline)


def _percentiles(draws: np.ndarray, observed: float, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return min(float(low), observed), max(float(high), observed)
