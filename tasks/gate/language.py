"""Judging language models: each answer has scores instead of being a label.

What is right or wrong on every example (exact match, preferences, a single check) is tested as
accuracy is; losses, F1, ROUGE-L and shares of checks by the tests in `means`. A loss per token is
tested as such: examples are resampled with their tokens. Perplexity is tested as its logarithm,
the loss; its margin and its differences are shares of the baseline's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import stats

from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_evaluation import GENERATED, METRICS, GateRecipe
from tasks.evaluate.language_metrics import BY_TOKENS, column_of, exp, metrics_of, value_of
from tasks.evaluate.score_table import keys_of, sorted_rows, values_of
from tasks.gate import bootstrap_mean, exact_tests, phrasing
from tasks.gate.evidence import (
    Answers,
    Compared,
    Evidence,
    Judgeable,
    MetricWords,
    seen_by_either,
    unpaired,
)
from tasks.gate.exact_rules import exact_claim, exact_harm
from tasks.gate.exact_tests import Interval
from tasks.gate.rules import POWER, alpha_of, parts_of, two_sided

COLUMNS = ("hash_hi", "hash_lo", "label", "loss", "tokens", "length")
WORDS = {
    "accuracy": MetricWords("accuracy"),
    "loss": MetricWords("loss", " nats per token", lower=True),
    "perplexity": MetricWords("perplexity", lower=True, relative=True),
    "exact_match": MetricWords("exact match"),
    "token_f1": MetricWords("token F1"),
    "rouge_l": MetricWords("ROUGE-L"),
    "checks": MetricWords("share of checks"),
    "preferred": MetricWords("share of preferred answers"),
}
# Nats. A loss beyond them is a defect, and its square would be no number.
_MOST = 1e9
# Of examples without a token: they show nothing.
_NOTHING = Compared(math.nan, math.nan, math.nan, (math.nan, math.nan), 1.0, None)


class Scores(Judgeable):
    """Tables of scores.

    Args:
        evidence: For its task, and for what the latency is of.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._task = evidence.task
        if "generated" in evidence.candidate.column_names:
            self.latency_unit = "ms per token"

    def columns(self, rules: GateRecipe) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*COLUMNS, *map(column_of, self._asked(rules)))))

    def may_be_empty(self, column: str) -> bool:
        return column not in ("hash_hi", "hash_lo", "label", "tokens", "length")

    def value_problems(
        self, model: str, table: pa.Table, evidence: Evidence, rules: GateRecipe
    ) -> Iterator[str]:
        if (values_of(table, "tokens") < 0).any():
            yield f"The {model}'s answers have a negative number of tokens."
        elif not values_of(table, "tokens").sum():
            yield f"The {model}'s answers have no tokens."
        for name in self.columns(rules):
            if name in ("loss", *METRICS[self._task]):
                yield from _number_problems(model, name, values_of(table, name))

    def contradictions(self, evidence: Evidence, rules: GateRecipe) -> Iterator[str]:
        if evidence.baseline is None:
            return
        alone = list(unpaired(evidence))
        yield from alone
        ours, theirs = sorted_rows(evidence.candidate), sorted_rows(evidence.baseline)
        by_tokens = self._task != "preference" and rules.metric in BY_TOKENS
        if not alone and by_tokens:
            other = int((values_of(ours, "tokens") != values_of(theirs, "tokens")).sum())
            if other:
                yield (
                    "Candidate and baseline read other numbers of tokens in the same answers (of "
                    f"{phrasing.count(other, 'test example')}), so a loss per token says nothing. "
                    "Set gate.metric to one of what the models write: "
                    f"{phrasing.listed(list(GENERATED))}."
                )

    def join(self, evidence: Evidence, slices: tuple[str, ...]) -> ScoredAnswers:
        ours = sorted_rows(evidence.candidate)
        theirs = ours if evidence.baseline is None else sorted_rows(evidence.baseline)
        measured = [name for name in _measured(self._task) if name in ours.column_names]
        return ScoredAnswers(
            task=self._task,
            seen=seen_by_either(evidence, keys_of(ours)),
            slicing={name: values_of(ours, name) for name in slices},
            tokens=values_of(ours, "tokens").astype(float),
            candidate={name: values_of(ours, name) for name in measured},
            baseline={
                name: values_of(theirs, name) for name in measured if name in theirs.column_names
            },
        )

    def _asked(self, rules: GateRecipe) -> tuple[str, ...]:
        return (rules.metric, *rules.floors)


@dataclass(frozen=True)
class ScoredAnswers(Answers):
    """Both models' scores.

    Attributes:
        task: What the models are for.
        tokens: Of each example's answers.
        candidate, baseline: Values of each metric that was measured.
    """

    task: Task
    tokens: np.ndarray
    candidate: dict[str, np.ndarray]
    baseline: dict[str, np.ndarray]

    def measured(self, metric: str) -> ScoredAnswers:
        if metric != "preferred":
            return self
        return self.where(np.isfinite(self.candidate[metric]))

    def words(self, metric: str) -> MetricWords:
        if metric == "loss" and self.task == "preference":
            return MetricWords("loss", " nats per pair", lower=True)
        return WORDS[metric]

    def slice_metric(self, rules: GateRecipe) -> str:
        return rules.metric

    def compare(self, rules: GateRecipe, margin: float) -> Compared:
        ours, theirs = self._pair(rules.metric)
        if _is_exact(rules.metric, ours, theirs):
            return _with_means(exact_claim(ours == 1, theirs == 1, rules, margin), ours, theirs)
        if not self._weights(rules.metric).sum():
            return _NOTHING
        # A perplexity that is higher by 2% is a loss that is higher by log(1.02).
        accepted = math.log1p(margin) if self.words(rules.metric).relative else margin
        compared = self._by_means(rules, 1, null=-accepted)
        if not margin:
            return compared
        # Fewer examples than this cannot show it, though they agree in all (`least_examples`).
        least = (1 - margin) ** len(self)
        return _with_p_value(compared, max(compared.p_value, least))

    def harm(self, rows: np.ndarray, rules: GateRecipe, family: int) -> Compared:
        ours, theirs = self._pair(rules.metric)
        if _is_exact(rules.metric, ours, theirs):
            seen = exact_harm(ours == 1, theirs == 1, rows, rules, family)
            return _with_means(seen, ours[rows], theirs[rows])
        part = self.where(rows)
        if not part._weights(rules.metric).sum():
            return _NOTHING
        return part._by_means(rules, family, harm=True)

    def value(self, metric: str, confidence: float) -> tuple[float, Interval]:
        values, weights = self.candidate[column_of(metric)], self._weights(metric)
        if not weights.sum():
            return math.nan, (math.nan, math.nan)
        found = value_of(metric, values, weights)
        if _is_binary(metric, values, values):
            return found, exact_tests.wilson_interval(int(values.sum()), len(self), confidence)
        low, high = bootstrap_mean.interval(values, weights, confidence)
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

    def _by_means(
        self, rules: GateRecipe, family: int, null: float = 0.0, harm: bool = False
    ) -> Compared:
        metric, shown = rules.metric, self.words(rules.metric)
        ours, theirs = self._pair(metric)
        weights = self._weights(metric)
        better = -1.0 if shown.lower else 1.0
        tested = -better if harm else better
        seen = bootstrap_mean.compare(
            tested * (ours - theirs), weights, null=null, confidence=two_sided(rules)
        )
        low, high = sorted(tested * bound for bound in seen.interval)
        difference = tested * seen.mean
        reach = seen.standard_error * float(
            stats.norm.isf(alpha_of(rules) / family) + stats.norm.isf(1 - POWER)
        )
        if shown.relative:
            low, high, difference = (_expm1(each) for each in (low, high, difference))
            # A rise by so much, or a fall.
            reach = _expm1(reach) if harm else -_expm1(-reach)
        return Compared(
            candidate=value_of(metric, ours, weights),
            baseline=value_of(metric, theirs, weights),
            difference=difference,
            interval=(low, high),
            p_value=seen.p_value,
            detectable=_detectable(reach, shown),
        )


def slice_metrics(
    table: pa.Table, slices: tuple[str, ...], task: Task
) -> dict[str, dict[str, float]]:
    """One language model's metrics, slice by slice.

    Args:
        table: As `metrics_of` takes it, with the slicing columns.
        slices: `length` (cut at the terciles), or string columns.
        task: What the model is for.

    Returns:
        For each slice (`length=short`) the metrics of `metrics_of`, and `examples`.
    """
    found = {}
    for name in slices:
        for part in parts_of(name, values_of(table, name)):
            metrics = metrics_of(table.filter(pa.array(part.rows)), task)
            found[part.name] = {**metrics, "examples": float(part.rows.sum())}
    return found


def _measured(task: Task) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(column_of, METRICS[task])))


def _number_problems(model: str, name: str, values: np.ndarray) -> Iterator[str]:
    spoken = WORDS[name].name
    if name == "preferred" and not (values := values[~np.isnan(values)]).size:
        yield f"No answer of the {model} was judged."
        return
    if bad := int((~(np.abs(values) < _MOST)).sum()):
        yield (
            f"The {model}'s {spoken} is not a finite number on "
            f"{phrasing.count(bad, 'test example')}."
        )
    elif name == "loss":
        if values.min() < 0:
            yield f"The {model}'s loss is negative."
    elif values.min() < 0 or values.max() > 1:
        yield f"The {model}'s {spoken} is not between 0 and 1."


def _is_binary(metric: str, *values: np.ndarray) -> bool:
    return metric not in BY_TOKENS and all(np.isin(each, (0, 1)).all() for each in values)


def _is_exact(metric: str, *values: np.ndarray) -> bool:
    # A judge's wins and losses are discordant pairs; its ties are concordant ones, so that "better"
    # is the sign test of wins against losses.
    return metric == "preferred" or _is_binary(metric, *values)


def _with_means(compared: Compared, candidate: np.ndarray, baseline: np.ndarray) -> Compared:
    # Where there are ties, the means are not the shares of wins.
    found = {"candidate": float(candidate.mean()), "baseline": float(baseline.mean())}
    return Compared(**{**vars(compared), **found})


def _with_p_value(compared: Compared, p_value: float) -> Compared:
    return Compared(**{**vars(compared), "p_value": p_value})


def _detectable(reach: float, shown: MetricWords) -> float | None:
    # Where all examples agree there is no spread to reckon with; a share cannot gain more than 1.
    if reach <= 0 or (reach > 1 and not shown.lower):
        return None
    return round(reach, 4)


def _expm1(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.expm1(value))
