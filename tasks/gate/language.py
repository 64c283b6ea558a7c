"""What the gate does for language models: each answer has scores instead of a label.

Metrics that are right or wrong on every example (exact match, preferences, a single check) are
tested exactly, as accuracy is; losses, F1, ROUGE-L and shares of checks by `bootstrap_mean`. A loss
per token is a ratio, so examples are resampled together with their tokens. Perplexity is tested as
its logarithm, the loss; its margin and its differences are shares of the baseline's perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from scipy import stats

from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.task_tables import GENERATED, METRICS
from tasks.evaluate.language_metrics import BY_TOKENS, column_of, exp, value_of
from tasks.evaluate.score_table import keys_of, sorted_rows, values_of
from tasks.gate import bootstrap_mean, exact_tests, phrasing, power
from tasks.gate.evidence import (
    Evidence,
    MetricComparison,
    PairedAnswers,
    ScoreTables,
    groups_of,
    seen_by_either,
    unpaired_examples,
)
from tasks.gate.exact_rules import exact_claim, exact_slice
from tasks.gate.exact_tests import Interval
from tasks.gate.phrasing import MetricPhrasing
from tasks.gate.resampling import MANY_EXAMPLES
from tasks.gate.rules import POWER, alpha_of, two_sided

COLUMNS = ("hash_hi", "hash_lo", "label", "loss", "tokens", "length")
PHRASINGS = {
    "accuracy": MetricPhrasing("accuracy"),
    "loss": MetricPhrasing("loss", " nats per token", lower_is_better=True),
    "perplexity": MetricPhrasing("perplexity", lower_is_better=True, relative=True),
    "exact_match": MetricPhrasing("exact match"),
    "token_f1": MetricPhrasing("token F1"),
    "rouge_l": MetricPhrasing("ROUGE-L"),
    "checks": MetricPhrasing("share of checks"),
    "preferred": MetricPhrasing("share of preferred answers"),
}
# Nats. A larger loss is a defect, and its square would overflow.
_LARGEST_LOSS = 1e9
# The comparison of examples without a token, which show nothing.
_INCONCLUSIVE = MetricComparison(math.nan, math.nan, math.nan, (math.nan, math.nan), 1.0, None)


class LanguageTables(ScoreTables):
    """Score tables with a loss and other scores per example.

    Args:
        evidence: For the task, and for whether the models generated answers.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._task = evidence.task
        if "generated" in evidence.candidate.column_names:
            self.latency_unit = "ms per token"

    def required_columns(self, rules: GateRecipe) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*COLUMNS, *map(column_of, (rules.metric, *rules.floors)))))

    def may_have_nulls(self, column: str) -> bool:
        return column not in ("hash_hi", "hash_lo", "label", "tokens", "length")

    def value_problems(
        self, model: str, table: pa.Table, evidence: Evidence, rules: GateRecipe
    ) -> Iterator[str]:
        if (values_of(table, "tokens") < 0).any():
            yield f"The {model}'s scores have a negative number of tokens."
        elif not values_of(table, "tokens").sum():
            yield f"The {model}'s scores have no tokens."
        for name in self.required_columns(rules):
            if name in ("loss", *METRICS[self._task]):
                yield from _number_problems(model, name, values_of(table, name))

    def pairing_problems(self, evidence: Evidence, rules: GateRecipe) -> Iterator[str]:
        if evidence.baseline is None:
            return
        unpaired = list(unpaired_examples(evidence))
        yield from unpaired
        ours, theirs = sorted_rows(evidence.candidate), sorted_rows(evidence.baseline)
        by_tokens = self._task != "preference" and rules.metric in BY_TOKENS
        if not unpaired and by_tokens:
            different = int((values_of(ours, "tokens") != values_of(theirs, "tokens")).sum())
            if different:
                yield (
                    "Candidate and baseline split the same answers into different numbers of "
                    f"tokens on {phrasing.count(different, 'test example')}, so their losses per "
                    "token cannot be compared. Set gate.metric to a metric of generated answers: "
                    f"{phrasing.listed(list(GENERATED))}."
                )

    def join(self, evidence: Evidence, slices: tuple[str, ...]) -> PairedScores:
        ours = sorted_rows(evidence.candidate)
        theirs = ours if evidence.baseline is None else sorted_rows(evidence.baseline)
        columns = dict.fromkeys(map(column_of, METRICS[self._task]))
        measured = [name for name in columns if name in ours.column_names]
        return PairedScores(
            task=self._task,
            seen=seen_by_either(evidence, keys_of(ours)),
            slice_columns={name: values_of(ours, name) for name in slices},
            groups=groups_of(ours),
            tokens=values_of(ours, "tokens").astype(float),
            candidate={name: values_of(ours, name) for name in measured},
            baseline={
                name: values_of(theirs, name) for name in measured if name in theirs.column_names
            },
        )


@dataclass(frozen=True)
class PairedScores(PairedAnswers):
    """Both models' scores.

    Attributes:
        task: The task of both models.
        tokens: Number of target tokens of each example, float64, shape (n,).
        candidate, baseline: The values of each measured metric, float64, shape (n,).
    """

    task: Task
    tokens: np.ndarray
    candidate: dict[str, np.ndarray]
    baseline: dict[str, np.ndarray]

    def scored_by(self, metric: str) -> PairedScores:
        if metric != "preferred":
            return self
        return self.where(np.isfinite(self.candidate[metric]))

    def phrasing_of(self, metric: str) -> MetricPhrasing:
        if metric == "loss" and self.task == "preference":
            return MetricPhrasing("loss", " nats per pair", lower_is_better=True)
        return PHRASINGS[metric]

    def slice_metric(self, rules: GateRecipe) -> str:
        return rules.metric

    def compare(self, rules: GateRecipe, margin: float) -> MetricComparison:
        ours, theirs = self._pair(rules.metric)
        if _is_exact(rules.metric, ours, theirs):
            compared = exact_claim(ours == 1, theirs == 1, rules, margin, self.groups)
            return _with_means(compared, ours, theirs)
        if not self._weights(rules.metric).sum():
            return _INCONCLUSIVE
        # A perplexity that is higher by 2% is a loss that is higher by log(1.02).
        accepted = math.log1p(margin) if self.phrasing_of(rules.metric).relative else margin
        compared = self._compare_means(rules, 1, null=-accepted)
        if not margin:
            return compared
        # Too few examples show nothing even if all agree; see `power.least_examples`.
        least = (1 - margin) ** self.draws
        return replace(compared, p_value=max(compared.p_value, least))

    def compare_slice(
        self, rows: np.ndarray, rules: GateRecipe, slice_count: int
    ) -> MetricComparison:
        ours, theirs = self._pair(rules.metric)
        if _is_exact(rules.metric, ours, theirs):
            compared = exact_slice(ours == 1, theirs == 1, rows, rules, slice_count, self.groups)
            return _with_means(compared, ours[rows], theirs[rows])
        part = self.where(rows)
        if not part._weights(rules.metric).sum():
            return _INCONCLUSIVE
        return part._compare_means(rules, slice_count, worse=True)

    def estimate(self, metric: str, confidence: float) -> tuple[float, Interval]:
        values, weights = self.candidate[column_of(metric)], self._weights(metric)
        if not weights.sum():
            return math.nan, (math.nan, math.nan)
        found = value_of(metric, values, weights)
        if _is_binary(metric, values, values) and self.groups is None:
            return found, exact_tests.wilson_interval(int(values.sum()), len(self), confidence)
        low, high = bootstrap_mean.interval(
            *bootstrap_mean.by_group(values, weights, self.groups), confidence
        )
        if metric == "perplexity":
            return found, (exp(low), exp(high))
        if metric not in BY_TOKENS:
            low, high = max(low, 0.0), min(high, 1.0)
        return found, (low, high)

    def _pair(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        return self.candidate[column_of(metric)], self.baseline[column_of(metric)]

    def _weights(self, metric: str) -> np.ndarray:
        by_tokens = metric in BY_TOKENS and self.task != "preference"
        return self.tokens if by_tokens else np.ones(len(self))

    def _effective(self, weights: np.ndarray) -> int:
        if weights is not self.tokens:
            return 0
        _, by_group = bootstrap_mean.by_group(weights, weights, self.groups)
        return round(bootstrap_mean.effective_examples(by_group))

    def _compare_means(
        self, rules: GateRecipe, tests: int, null: float = 0.0, worse: bool = False
    ) -> MetricComparison:
        """Compare by the bootstrap of the mean, as one of several tests.

        Tests whether the candidate is better, or with `worse` whether it is worse.
        """
        metric, phrased = rules.metric, self.phrasing_of(rules.metric)
        ours, theirs = self._pair(metric)
        weights = self._weights(metric)
        better = -1.0 if phrased.lower_is_better else 1.0
        tested = -better if worse else better
        gain = bootstrap_mean.compare(
            *bootstrap_mean.by_group(tested * (ours - theirs), weights, self.groups),
            null=null,
            confidence=two_sided(rules),
            # A slice may veto on fewer examples than could rule out an unseen part.
            bounded=metric not in BY_TOKENS and not worse,
        )
        low, high = sorted(tested * bound for bound in gain.interval)
        difference = tested * gain.mean
        detectable = gain.standard_error * float(
            stats.norm.isf(alpha_of(rules) / tests) + stats.norm.isf(1 - POWER)
        )
        if phrased.relative:
            low, high, difference = (_expm1(each) for each in (low, high, difference))
            detectable = _expm1(detectable) if worse else -_expm1(-detectable)
        return MetricComparison(
            candidate=value_of(metric, ours, weights),
            baseline=value_of(metric, theirs, weights),
            difference=difference,
            interval=(low, high),
            p_value=gain.p_value,
            detectable=_detectable(detectable, phrased),
            worse_p=gain.worse_p,
            approximate=self.draws > MANY_EXAMPLES,
            effective=self._effective(weights),
            **power.of_equal(len(self), gain.standard_error, -null, alpha_of(rules)),
        )


def _number_problems(model: str, name: str, values: np.ndarray) -> Iterator[str]:
    phrased = PHRASINGS[name].name
    if name == "preferred" and not (values := values[~np.isnan(values)]).size:
        yield f"The LLM judge compared none of the {model}'s answers."
        return
    if bad := int((~(np.abs(values) < _LARGEST_LOSS)).sum()):
        yield (
            f"The {model}'s {phrased} is not a finite number on "
            f"{phrasing.count(bad, 'test example')}."
        )
    elif name == "loss":
        if values.min() < 0:
            yield f"The {model}'s loss is negative."
    elif values.min() < 0 or values.max() > 1:
        yield f"The {model}'s {phrased} is not between 0 and 1."


def _is_binary(metric: str, *values: np.ndarray) -> bool:
    return metric not in BY_TOKENS and all(np.isin(each, (0, 1)).all() for each in values)


def _is_exact(metric: str, *values: np.ndarray) -> bool:
    # An LLM judge's wins and losses are discordant pairs and its ties are concordant ones, so
    # "better" is the sign test of wins against losses.
    return metric == "preferred" or _is_binary(metric, *values)


def _with_means(
    compared: MetricComparison, candidate: np.ndarray, baseline: np.ndarray
) -> MetricComparison:
    # With ties, the means are not the shares of wins.
    return replace(compared, candidate=float(candidate.mean()), baseline=float(baseline.mean()))


def _detectable(difference: float, phrased: MetricPhrasing) -> float | None:
    # If all examples agree, the spread is unknown; a share cannot gain more than 1.
    if difference <= 0 or (difference > 1 and not phrased.lower_is_better):
        return None
    return round(difference, 4)


def _expm1(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.expm1(value))
