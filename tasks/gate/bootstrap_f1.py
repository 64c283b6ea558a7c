"""The paired bootstrap for accuracy and F1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.gate.exact_tests import (
    RESAMPLES,
    Interval,
    Metric,
    check_probability,
    shifted_lost_share,
)

# Gained and lost pairs that join the pool of the bootstrap.
ADDED_PAIRS = 1


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
    check_probability("confidence", confidence)
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
    check_probability("confidence", confidence)
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
