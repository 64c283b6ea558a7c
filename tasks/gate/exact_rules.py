"""Two models that are right or wrong: the exact tests, as the rules want them."""

from __future__ import annotations

import numpy as np

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.evaluate.score_table import mean
from tasks.gate import exact_tests, power
from tasks.gate.evidence import Compared
from tasks.gate.rules import POWER, alpha_of, two_sided

# Where no pair is discordant, what a test set can show is worked out for this share.
STATED_DISCORDANCE = 0.05


def exact_claim(
    candidate: np.ndarray, baseline: np.ndarray, rules: GateRecipe, margin: float
) -> Compared:
    """Test the claim on the share of right answers.

    Args:
        candidate, baseline: Where each is right, bool, shape (n,).
        rules: For the confidence.
        margin: The loss that is accepted; 0 means "better".
    """
    n, (gained, lost) = len(candidate), exact_tests.discordant_pairs(candidate, baseline)
    if margin:
        p_value = exact_tests.noninferiority_p(gained, lost, n, margin)
    else:
        p_value = exact_tests.superiority_p(gained, lost)
    discordance = _discordance(candidate, baseline)
    detectable = power.detectable_gain(n, discordance, alpha_of(rules), POWER)
    return _compared(candidate, baseline, rules, p_value, detectable)


def exact_harm(
    candidate: np.ndarray, baseline: np.ndarray, rows: np.ndarray, rules: GateRecipe, family: int
) -> Compared:
    """Test for harm to one slice of a family.

    Args:
        candidate, baseline: Where each is right, bool, shape (n,).
        rows: The slice, bool, shape (n,).
        rules: For the confidence.
        family: How many slices there are.
    """
    ours, theirs = candidate[rows], baseline[rows]
    gained, lost = exact_tests.discordant_pairs(ours, theirs)
    # The first step of Holm's procedure: what a slice must reach when it alone is harmed.
    detectable = power.detectable_gain(
        len(ours), _discordance(candidate, baseline), alpha_of(rules) / family, POWER
    )
    p_value = exact_tests.superiority_p(lost, gained)
    return _compared(ours, theirs, rules, p_value, detectable)


def _compared(
    candidate: np.ndarray,
    baseline: np.ndarray,
    rules: GateRecipe,
    p_value: float,
    detectable: float | None,
) -> Compared:
    n, (gained, lost) = len(candidate), exact_tests.discordant_pairs(candidate, baseline)
    return Compared(
        candidate=mean(candidate),
        baseline=mean(baseline),
        difference=(gained - lost) / n,
        interval=exact_tests.difference_interval(gained, lost, n, two_sided(rules)),
        p_value=p_value,
        detectable=detectable,
        discordant=(gained, lost),
    )


def _discordance(candidate: np.ndarray, baseline: np.ndarray) -> float:
    return (
        sum(exact_tests.discordant_pairs(candidate, baseline)) / len(candidate)
        or STATED_DISCORDANCE
    )
