"""The gate's comparisons of right and wrong answers, by the exact tests."""

from __future__ import annotations

import numpy as np

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.evaluate.score_table import mean
from tasks.gate import exact_tests, power
from tasks.gate.evidence import MetricComparison
from tasks.gate.rules import POWER, alpha_of, two_sided

# The discordance that the detectable difference assumes if no pair is discordant.
ASSUMED_DISCORDANCE = 0.05


def exact_claim(
    candidate: np.ndarray, baseline: np.ndarray, rules: GateRecipe, margin: float
) -> MetricComparison:
    """Test the claim on the share of right answers.

    Args:
        candidate, baseline: Whether each answer is right, bool, shape (n,).
        rules: For the confidence.
        margin: The accepted drop, a share; 0 means "better".
    """
    n, (gained, lost) = len(candidate), exact_tests.discordant_pairs(candidate, baseline)
    if margin:
        p_value = exact_tests.noninferiority_p(gained, lost, n, margin)
    else:
        p_value = exact_tests.superiority_p(gained, lost)
    discordance = _discordance(candidate, baseline)
    detectable = power.detectable_gain(n, discordance, alpha_of(rules), POWER)
    return _compared(candidate, baseline, rules, p_value, detectable)


def exact_slice(
    candidate: np.ndarray,
    baseline: np.ndarray,
    rows: np.ndarray,
    rules: GateRecipe,
    slice_count: int,
) -> MetricComparison:
    """Test whether the candidate's share of right answers is lower on one slice of several.

    Args:
        candidate, baseline: Whether each answer is right, bool, shape (n,).
        rows: The slice, a mask, bool, shape (n,).
        rules: For the confidence.
        slice_count: How many slices are tested.
    """
    ours, theirs = candidate[rows], baseline[rows]
    gained, lost = exact_tests.discordant_pairs(ours, theirs)
    # The first step of Holm's procedure, which applies if this slice alone is worse.
    detectable = power.detectable_gain(
        len(ours), _discordance(candidate, baseline), alpha_of(rules) / slice_count, POWER
    )
    p_value = exact_tests.superiority_p(lost, gained)
    return _compared(ours, theirs, rules, p_value, detectable)


def _compared(
    candidate: np.ndarray,
    baseline: np.ndarray,
    rules: GateRecipe,
    p_value: float,
    detectable: float | None,
) -> MetricComparison:
    n, (gained, lost) = len(candidate), exact_tests.discordant_pairs(candidate, baseline)
    return MetricComparison(
        candidate=mean(candidate),
        baseline=mean(baseline),
        difference=(gained - lost) / n,
        interval=exact_tests.difference_interval(gained, lost, n, two_sided(rules)),
        p_value=p_value,
        detectable=detectable,
        discordant=(gained, lost),
    )


def _discordance(candidate: np.ndarray, baseline: np.ndarray) -> float:
    discordant = sum(exact_tests.discordant_pairs(candidate, baseline))
    return discordant / len(candidate) or ASSUMED_DISCORDANCE
