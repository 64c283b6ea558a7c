"""The rule on the guard set: texts that a language model must not forget in fine-tuning.

Both models are scored on the guard set as on the test examples. The rule requires evidence of no
harm: the candidate's loss per token must be shown not to be higher by more than a margin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.gate import phrasing, power
from tasks.gate.evidence import NO_BASELINE, UNTRAINED, Evidence, MetricComparison, problems
from tasks.gate.language import LanguageTables
from tasks.gate.phrasing import MetricPhrasing
from tasks.gate.rules import alpha_of, two_sided, with_sentence

SLICE = "guard set"


@dataclass(frozen=True)
class Guard:
    """Both models' scores on the guard set.

    Attributes:
        candidate: The candidate's score table, as `tasks.evaluate.language_program` writes it.
        baseline: The deployed release's score table; on a first run, the base model's.
        task: The task of the guard set: completion or instruction.
    """

    candidate: pa.Table
    baseline: pa.Table
    task: Task


def guard_rule(
    guard: Guard,
    rules: GateRecipe,
    baseline: str,
    candidate_seen: np.ndarray | None,
    baseline_seen: np.ndarray | None,
) -> RuleOutcome:
    """Whether the candidate still knows the guard set. A failure vetoes, as does unusable evidence.

    Args:
        guard: Both models' scores.
        rules: For the margin (`guard_margin`, nats per token) and the confidence.
        baseline: A release's version; `untrained base` or `none` for the base model.
        candidate_seen, baseline_seen: As in `Evidence`. Texts that a model was trained on say
            nothing about forgetting, and are excluded.
    """
    by_loss = rules.model_copy(update={"metric": "loss", "floors": {}})
    evidence = Evidence(
        candidate=guard.candidate,
        baseline=guard.baseline,
        candidate_labels=(),
        baseline_labels=(),
        candidate_seen=candidate_seen,
        baseline_seen=baseline_seen,
        latency_ms=None,
        size_bytes=0,
        task=guard.task,
    )
    tables = LanguageTables(evidence)
    if found := problems(tables, evidence, by_loss, (), "baseline"):
        return _unusable(rules, f"The guard set's scores cannot be used. {' '.join(found)}")
    every = tables.join(evidence, ())
    counted = every.where(~every.seen)
    excluded = len(every) - len(counted)
    if not counted.tokens.sum():
        return _unusable(
            rules,
            f"No example of the guard set counts: a model saw {excluded} of {len(every)} in "
            "training. Choose other texts for evaluation.guard.",
        )
    compared, metric = counted.compare(by_loss, rules.guard_margin), counted.phrasing_of("loss")
    outcome = _outcome(rules, compared, len(counted))
    opponent = "the base model" if baseline in (UNTRAINED, NO_BASELINE) else "the baseline"
    return with_sentence(outcome, _sentence(outcome, metric, rules, opponent, excluded))


def _name(rules: GateRecipe) -> str:
    return f"no harm to the guard set by more than {rules.guard_margin:g} nats per token"


def _unusable(rules: GateRecipe, reason: str) -> RuleOutcome:
    return RuleOutcome(
        rule="error", name=_name(rules), metric="loss", slice=SLICE, passed=False, sentence=reason
    )


def _outcome(rules: GateRecipe, compared: MetricComparison, examples: int) -> RuleOutcome:
    return RuleOutcome(
        rule="no harm",
        name=_name(rules),
        metric="loss",
        slice=SLICE,
        candidate=compared.candidate,
        baseline=compared.baseline,
        difference=compared.difference,
        interval=compared.interval,
        p_value=compared.p_value,
        examples=examples,
        detectable=compared.detectable,
        passed=compared.p_value <= alpha_of(rules),
        sentence="",
    )


def _sentence(
    outcome: RuleOutcome, metric: MetricPhrasing, rules: GateRecipe, opponent: str, excluded: int
) -> str:
    margin = f"{rules.guard_margin:g} nats per token"
    finding = f"not worse by more than {margin}"
    if not outcome.passed:
        finding = f"a rise of more than {margin} cannot be ruled out"
    low, high = map(metric.difference, outcome.interval)
    sentence = (
        f"On the guard set, loss is {phrasing.number(outcome.candidate)} against "
        f"{phrasing.number(outcome.baseline)}{metric.unit} for {opponent}: {finding} (difference "
        f"{metric.difference(outcome.difference)}, {two_sided(rules) * 100:g}% interval {low} to "
        f"{high}, {phrasing.p_value(outcome.p_value, alpha_of(rules))}, "
        f"{phrasing.count(outcome.examples, 'example')})."
    )
    needed = power.least_examples(rules.guard_margin, alpha_of(rules))
    if outcome.examples < needed:
        too_few = phrasing.too_few_examples(outcome.examples, needed, "gate.guard_margin")
        sentence += f" {too_few}"
    return sentence + phrasing.excluded(excluded)
