"""Many retrains on the same test set, drawn row by row."""

from __future__ import annotations

import functools

import numpy as np
from scipy import optimize, special

from tasks.gate import exact_tests
from tasks.gate.anchor_rule import PROOF_SHARE

ALPHA = 0.05
MARGIN = 0.03
START, SPREAD = 0.85, 5.0
"""The first release's true accuracy, and the spread of the test rows' logits: models of equal
accuracy then differ on some 11% of the rows."""


class Rows:
    """Test rows of different difficulty, on which models are drawn.

    A model's answer to a row is right with the probability that the row's logit, shifted by the
    model's skill, says.
    """

    def __init__(self, random: np.random.Generator, n: int) -> None:
        self._random = random
        self._logits = random.normal(_center(), SPREAD, n)

    def model(self, accuracy: float) -> np.ndarray:
        """A model with a true accuracy over all rows that might be drawn."""
        chance = special.expit(self._logits + _shift(round(accuracy, 4)))
        return self._random.random(len(chance)) < chance


def _mean_accuracy(center: float) -> float:
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    return float((special.expit(center + SPREAD * points) * weights).sum() / weights.sum())


@functools.cache
def _shift(accuracy: float) -> float:
    wanted = optimize.brentq(lambda center: _mean_accuracy(center) - accuracy, -40, 40)
    return float(wanted) - _center()


@functools.cache
def _center() -> float:
    return float(optimize.brentq(lambda center: _mean_accuracy(center) - START, -40, 40))


@functools.cache
def fewest_gains(pairs: int, n: int, margin: float, alpha: float) -> int:
    """The fewest gains among the discordant pairs with which the gate's own test passes."""
    low, high = 0, pairs + 1
    while low < high:
        middle = (low + high) // 2
        lost = pairs - middle
        if margin:
            p_value = exact_tests.noninferiority_p(middle, lost, n, margin)
        else:
            p_value = exact_tests.superiority_p(middle, lost, n)
        low, high = (low, middle) if p_value <= alpha else (middle + 1, high)
    return low


def passes(ours: np.ndarray, theirs: np.ndarray, margin: float, alpha: float = ALPHA) -> bool:
    """Whether the gate's test on right answers passes."""
    gained, lost = exact_tests.discordant_pairs(ours, theirs)
    return bool(gained >= fewest_gains(gained + lost, len(ours), margin, alpha))


def _retrain(
    rows: Rows, deployed: np.ndarray, anchor: np.ndarray | None, accuracy: float
) -> tuple[bool, np.ndarray, np.ndarray | None]:
    """One retrain: whether its candidate is released, its answers, and the anchor after it."""
    candidate = rows.model(accuracy)
    released = passes(candidate, deployed, MARGIN)
    if anchor is not None:
        released = released and passes(candidate, anchor, MARGIN)
    if not released:
        return False, deployed, anchor
    if anchor is not None and passes(candidate, anchor, 0.0, ALPHA / PROOF_SHARE):
        anchor = candidate
    return True, candidate, anchor


def decline(random: np.random.Generator, n: int, anchored: bool) -> float:
    rows, accuracy = Rows(random, n), START
    deployed = rows.model(accuracy)
    anchor = deployed if anchored else None
    for _ in range(20):
        released, deployed, anchor = _retrain(rows, deployed, anchor, accuracy - 0.01)
        accuracy -= 0.01 * released
    return float(accuracy < START - 0.0499)


def equal_retrains(random: np.random.Generator, n: int, anchored: bool) -> float:
    rows = Rows(random, n)
    deployed = rows.model(START)
    anchor, released = deployed if anchored else None, []
    for _ in range(100):
        one, deployed, anchor = _retrain(rows, deployed, anchor, START)
        released.append(one)
    return float(np.mean(released[-20:]))


def false_promotion(random: np.random.Generator, n: int, looks: int) -> float:
    rows = Rows(random, n)
    deployed, alpha = rows.model(START), ALPHA / (looks or 1)
    return float(any(passes(rows.model(START), deployed, 0.0, alpha) for _ in range(20)))
