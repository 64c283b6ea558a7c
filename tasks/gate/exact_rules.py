"""The gate's comparisons of right and wrong answers: by the exact tests, or where examples belong
together, by tests on the groups' means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.evaluate.score_table import mean
from tasks.gate import bootstrap_mean, exact_tests, power
from tasks.gate.evidence import MetricComparison
from tasks.gate.resampling import MANY_EXAMPLES
from tasks.gate.rules import POWER, alpha_of, two_sided

# The discordance that the detectable difference assumes if no pair is discordant.
ASSUMED_DISCORDANCE = 0.05


def exact_claim(
    candidate: np.ndarray,
    baseline: np.ndarray,
    rules: GateRecipe,
    margin: float,
    groups: np.ndarray | None = None,
) -> MetricComparison:
    """Test the claim on the share of right answers.

    Args:
        candidate, baseline: Whether each answer is right, bool, shape (n,).
        rules: For the confidence.
        margin: The accepted drop, a share; 0 means "better".
        groups: As in `PairedAnswers`.
    """
    if groups is not None:
        found = _by_group(candidate, baseline, groups, rules, -margin)
        # Groups that all agree: see `power.least_examples`.
        least = (1 - margin) ** len(np.unique(groups)) if margin else 0.0
        return replace(found, p_value=max(found.p_value, least))
    n, (gained, lost) = len(candidate), exact_tests.discordant_pairs(candidate, baseline)
    if margin:
        p_value = exact_tests.noninferiority_p(gained, lost, n, margin)
    else:
        p_value = exact_tests.superiority_p(gained, lost, n)
    discordance = _discordance(candidate, baseline)
    detectable = power.detectable_gain(n, discordance, alpha_of(rules), POWER)
    compared = _compared(candidate, baseline, rules, p_value, detectable)
    worse_p = exact_tests.superiority_p(lost, gained, n)
    approximate = exact_tests.are_many(gained + lost, n, margin)
    compared = replace(compared, worse_p=worse_p, approximate=approximate)
    if not margin:
        return compared
    error = (discordance / n) ** 0.5
    return replace(
        compared,
        equal_passes=power.equal_passes(n, discordance, margin, alpha_of(rules)),
        examples_needed=power.examples_for(n, error, margin, alpha_of(rules), POWER),
    )


def exact_slice(
    candidate: np.ndarray,
    baseline: np.ndarray,
    rows: np.ndarray,
    rules: GateRecipe,
    slice_count: int,
    groups: np.ndarray | None = None,
) -> MetricComparison:
    """Test whether the candidate's share of right answers is lower on one slice of several.

    Args:
        candidate, baseline: Whether each answer is right, bool, shape (n,).
        rows: The slice, a mask, bool, shape (n,).
        rules: For the confidence.
        slice_count: How many slices are tested.
        groups: As in `PairedAnswers`.
    """
    ours, theirs = candidate[rows], baseline[rows]
    if groups is not None:
        return _by_group(ours, theirs, groups[rows], rules, 0.0, slice_count, worse=True)
    gained, lost = exact_tests.discordant_pairs(ours, theirs)
    # The first step of Holm's procedure, which applies if this slice alone is worse.
    detectable = power.detectable_gain(
        len(ours), _discordance(candidate, baseline), alpha_of(rules) / slice_count, POWER
    )
    p_value = exact_tests.superiority_p(lost, gained, len(ours))
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


def _by_group(
    candidate: np.ndarray,
    baseline: np.ndarray,
    groups: np.ndarray,
    rules: GateRecipe,
    null: float,
    tests: int = 1,
    worse: bool = False,
) -> MetricComparison:
    """Test whether the candidate is better, or with `worse` whether it is worse, as one of several
    tests on groups."""
    sign = -1.0 if worse else 1.0
    gains = sign * (candidate.astype(float) - baseline)
    by_group = bootstrap_mean.by_group(gains, np.ones(len(gains)), groups)
    gain = bootstrap_mean.compare(*by_group, null=null, confidence=two_sided(rules))
    low, high = sorted(sign * bound for bound in gain.interval)
    return MetricComparison(
        candidate=mean(candidate),
        baseline=mean(baseline),
        difference=sign * gain.mean,
        interval=(max(low, -1.0), min(high, 1.0)),
        p_value=gain.p_value,
        detectable=power.detectable_by_error(gain.standard_error, alpha_of(rules) / tests, POWER),
        discordant=exact_tests.discordant_pairs(candidate, baseline),
        worse_p=gain.worse_p,
        approximate=len(by_group[0]) > MANY_EXAMPLES,
        **power.of_equal(len(gains), gain.standard_error, -null, alpha_of(rules)),
    )


def _discordance(candidate: np.ndarray, baseline: np.ndarray) -> float:
    discordant = sum(exact_tests.discordant_pairs(candidate, baseline))
    return discordant / len(candidate) or ASSUMED_DISCORDANCE
