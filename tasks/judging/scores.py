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

from tasks.contracts.evaluation import GENERATED, METRICS, GateRecipe
from tasks.contracts.training import Task
from tasks.errors import BadData
from tasks.judging import means, paired, words
from tasks.judging.counts import exact_claim, exact_harm
from tasks.judging.evidence import (
    Answers,
    Compared,
    Evidence,
    Judgeable,
    MetricWords,
    keys_of,
    seen_by_either,
    sorted_rows,
    unpaired,
    values_of,
)
from tasks.judging.paired import Interval
from tasks.judging.rules import POWER, alpha_of, parts_of, two_sided

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
# By the tokens, where two models cut texts into other tokens, a loss says nothing.
_BY_TOKENS = ("loss", "perplexity")
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
        return tuple(dict.fromkeys((*COLUMNS, *map(_column, self._asked(rules)))))

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
        by_tokens = self._task != "preference" and rules.metric in _BY_TOKENS
        if not alone and by_tokens:
            other = int((values_of(ours, "tokens") != values_of(theirs, "tokens")).sum())
            if other:
                yield (
                    "Candidate and baseline read other numbers of tokens in the same answers (of "
                    f"{words.count(other, 'test example')}), so a loss per token says nothing. "
                    "Set gate.metric to one of what the models write: "
                    f"{words.listed(list(GENERATED))}."
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
        values, weights = self.candidate[_column(metric)], self._weights(metric)
        if not weights.sum():
            return math.nan, (math.nan, math.nan)
        found = _value(metric, values, weights)
        if _is_binary(metric, values, values):
            return found, paired.wilson_interval(int(values.sum()), len(self), confidence)
        low, high = means.interval(values, weights, confidence)
        if metric == "perplexity":
            return found, (_exp(low), _exp(high))
        if metric not in _BY_TOKENS:
            low, high = max(low, 0.0), min(high, 1.0)
        return found, (low, high)

    def _pair(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        return self.candidate[_column(metric)], self.baseline[_column(metric)]

    def _weights(self, metric: str) -> np.ndarray:
        by_tokens = metric in _BY_TOKENS and self.task != "preference"
        return self.tokens if by_tokens else np.ones(len(self))

    def _by_means(
        self, rules: GateRecipe, family: int, null: float = 0.0, harm: bool = False
    ) -> Compared:
        metric, shown = rules.metric, self.words(rules.metric)
        ours, theirs = self._pair(metric)
        weights = self._weights(metric)
        better = -1.0 if shown.lower else 1.0
        tested = -better if harm else better
        seen = means.compare(
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
            candidate=_value(metric, ours, weights),
            baseline=_value(metric, theirs, weights),
            difference=difference,
            interval=(low, high),
            p_value=seen.p_value,
            detectable=_detectable(reach, shown),
        )


# Metrics for reports


def metrics_of(table: pa.Table, task: Task) -> dict[str, float]:
    """One language model's metrics on the whole test set.

    Args:
        table: What `tasks.programs.score_language` wrote.
        task: What the model is for.

    Returns:
        `loss` (nats per token over all tokens; of preferences the mean over inputs), `perplexity`
        (its exponential; not of preferences), and the mean of each other metric that was measured.
        NaN or infinite where a value is.

    Raises:
        BadData: The table has no rows.
    """
    if not table.num_rows:
        raise BadData(
            "test split", "no examples", "at least one", "give more data to the test split"
        )
    found = {}
    for metric in (*METRICS[task], *GENERATED):
        name = _column(metric)
        if name not in table.column_names or metric in found:
            continue
        if table.column(name).null_count == table.num_rows:
            continue  # Checks that nobody asked for.
        values = values_of(table, name)
        by_tokens = metric in _BY_TOKENS and task != "preference"
        weights = values_of(table, "tokens") if by_tokens else np.ones(len(values))
        found[metric] = _value(metric, values, weights)
    return found


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
    return tuple(dict.fromkeys(map(_column, METRICS[task])))


def _column(metric: str) -> str:
    return "loss" if metric == "perplexity" else metric


def _value(metric: str, values: np.ndarray, weights: np.ndarray) -> float:
    mean = means.weighted_mean(values, weights)
    return _exp(mean) if metric == "perplexity" else mean


def _number_problems(model: str, name: str, values: np.ndarray) -> Iterator[str]:
    spoken = WORDS[name].name
    if name == "preferred" and not (values := values[~np.isnan(values)]).size:
        yield f"No answer of the {model} was judged."
        return
    if bad := int((~(np.abs(values) < _MOST)).sum()):
        yield (
            f"The {model}'s {spoken} is not a finite number on {words.count(bad, 'test example')}."
        )
    elif name == "loss":
        if values.min() < 0:
            yield f"The {model}'s loss is negative."
    elif values.min() < 0 or values.max() > 1:
        yield f"The {model}'s {spoken} is not between 0 and 1."


def _is_binary(metric: str, *values: np.ndarray) -> bool:
    return metric not in _BY_TOKENS and all(np.isin(each, (0, 1)).all() for each in values)


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


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _expm1(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.expm1(value))
