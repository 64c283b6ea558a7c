"""The guard set: texts that a language model must not forget while it learns others.

Both models are scored on them as on the test examples. The rule asks for evidence of no harm: the
candidate's loss per token must be shown not to be higher by more than a margin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.gate import phrasing, power
from tasks.gate.evidence import UNTRAINED, Compared, Evidence, MetricWords, problems
from tasks.gate.language import Scores
from tasks.gate.rules import alpha_of, two_sided

SLICE = "guard set"


@dataclass(frozen=True)
class Guard:
    """What the models make of the guard set.

    Attributes:
        candidate: The candidate's scores, as `tasks.evaluate.language_program` wrote them.
        baseline: Those of the deployed release; on a first run, of the base model.
        task: What the texts were read for: completion or instruction.
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
    """Whether the guard set was not forgotten. It vetoes; what cannot be judged does, too.

    Args:
        guard: Both models' scores.
        rules: For the margin (`guard_margin`, nats per token) and the confidence.
        baseline: A release's version; anything else is the base model.
        candidate_seen, baseline_seen: As `Evidence` has them: texts that a model was trained on
            show nothing about forgetting, and are left out.
    """
    asked = rules.model_copy(update={"metric": "loss", "floors": {}})
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
    kind = Scores(evidence)
    if found := problems(kind, evidence, asked, (), "baseline"):
        return _unjudged(rules, f"The guard set cannot be judged. {' '.join(found)}")
    every = kind.join(evidence, ())
    kept = every.where(~every.seen)
    dropped = len(every) - len(kept)
    if not kept.tokens.sum():
        return _unjudged(
            rules,
            f"All {phrasing.count(dropped, 'example')} of the guard set had been seen in training, "
            "so they show nothing about what is forgotten: name other texts as evaluation.guard.",
        )
    seen, metric = kept.compare(asked, rules.guard_margin), kept.words("loss")
    outcome = _outcome(rules, seen, len(kept))
    opponent = "the base model" if baseline in (UNTRAINED, "none") else "the baseline"
    return outcome.model_copy(
        update={"sentence": _sentence(outcome, metric, rules, opponent, dropped)}
    )


def _name(rules: GateRecipe) -> str:
    return f"no harm to the guard set by more than {rules.guard_margin:g} nats per token"


def _unjudged(rules: GateRecipe, reason: str) -> RuleOutcome:
    return RuleOutcome(
        rule="error", name=_name(rules), metric="loss", slice=SLICE, passed=False, sentence=reason
    )


def _outcome(rules: GateRecipe, seen: Compared, examples: int) -> RuleOutcome:
    return RuleOutcome(
        rule="no harm",
        name=_name(rules),
        metric="loss",
        slice=SLICE,
        candidate=seen.candidate,
        baseline=seen.baseline,
        difference=seen.difference,
        interval=seen.interval,
        p_value=seen.p_value,
        examples=examples,
        detectable=seen.detectable,
        passed=seen.p_value <= alpha_of(rules),
        sentence="",
    )


def _sentence(
    outcome: RuleOutcome, metric: MetricWords, rules: GateRecipe, opponent: str, dropped: int
) -> str:
    margin = f"{rules.guard_margin:g} nats per token"
    finding = f"not worse by more than {margin}"
    if not outcome.passed:
        finding = f"a rise of more than {margin} cannot be ruled out"
    low, high = map(metric.difference, outcome.interval)
    told = (
        f"On the guard set the loss is {phrasing.number(outcome.candidate)} against "
        f"{phrasing.number(outcome.baseline)}{metric.unit} for {opponent}: {finding} (difference "
        f"{metric.difference(outcome.difference)}, {two_sided(rules) * 100:g}% interval {low} to "
        f"{high}, {phrasing.p_value(outcome.p_value)}, "
        f"{phrasing.count(outcome.examples, 'example')})."
    )
    needed = power.least_examples(rules.guard_margin, alpha_of(rules))
    if outcome.examples < needed:
        told += (
            f" With {phrasing.count(outcome.examples, 'example')} not even two models that always "
            f"agree could show it: that takes {needed}, or a wider gate.guard_margin."
        )
    if dropped:
        were = "was" if dropped == 1 else "were"
        told += f" {dropped} {were} left out because a model had seen them in training."
    return told
