"""Judging: is the candidate good enough to replace what is deployed?

Both models have answered the same test examples, one by one. `decide` turns these answers and the
recipe's rules into a verdict, as a pure function: no clock, no network, no random state that does
not come from the data. What the evidence must be is in `evidence`, the rules are in `rules`, and
what differs between labels and scores in `classes` and `scores`. Exactly one rule, the claim,
carries the error rate; the others ask for a minimum or stop clear harm. Whatever is missing or not
a number rejects, with the reason.
"""

from __future__ import annotations

import numpy as np

from tasks.contracts.recipe_evaluation import METRICS, GateRecipe
from tasks.contracts.verdict import RuleOutcome, Verdict
from tasks.gate import classification, phrasing
from tasks.gate import rules as applied
from tasks.gate.classification import Classes, Labels
from tasks.gate.evidence import Answers, Evidence, problems, what_is_known
from tasks.gate.guard_rule import Guard, guard_rule
from tasks.gate.language import Scores


def decide(
    evidence: Evidence,
    rules: GateRecipe,
    slices: tuple[str, ...],
    *,
    candidate_digest: str,
    baseline: str,
    baseline_digest: str,
    baseline_entry: int,
    test_digest: str,
    look_number: int,
    guard: Guard | None = None,
) -> Verdict:
    """Decide whether the candidate may replace the baseline.

    Examples that either model has seen in training are left out. The claim and the slices compare
    the models on examples whose label the baseline knows; the floors look at all examples; each
    label that is new to the baseline has a floor of its own. Against the untrained base model the
    claim is always "better" and slices do not veto. Without a baseline the floors decide alone.

    Args:
        evidence: Both models' answers, and the candidate's latency and size.
        rules: The recipe's `gate`.
        slices: The recipe's `evaluation.slices`: `label`, `length`, or string columns.
        candidate_digest: Digest of the candidate's artifact.
        baseline: A release's version, a model's name, `untrained base` or `none`.
        baseline_digest: Digest of the baseline's artifact; empty where there is none.
        baseline_entry: Number of the log entry that deployed the baseline; 0 where there is none.
        test_digest: The test set's identity.
        look_number: How many verdicts the test set has served, this one included.
        guard: Both models' scores on the guard set, where there is one.

    Returns:
        The verdict. Evidence that is incomplete, contradictory or not a number never raises: it
        rejects, by rules of kind `error`.
    """
    if rules.metric == "auto":
        rules = rules.model_copy(update={"metric": METRICS[evidence.task][0]})
    outcomes, examples, dropped = _apply(evidence, rules, slices, baseline)
    if guard is not None:
        seen = evidence.candidate_seen, evidence.baseline_seen
        outcomes.append(guard_rule(guard, rules, baseline, *seen))
    promoted = all(rule.passed or not rule.vetoes for rule in outcomes)
    return Verdict(
        outcome="promoted" if promoted else "rejected",
        rules=tuple(outcomes),
        candidate_digest=candidate_digest,
        baseline=baseline,
        baseline_digest=baseline_digest,
        baseline_entry=baseline_entry,
        test_digest=test_digest,
        look_number=look_number,
        examples=examples,
        dropped=dropped,
        baseline_seen=what_is_known(evidence, baseline),
        summary=applied.summary(promoted, outcomes, examples, baseline, look_number),
    )


def _apply(
    evidence: Evidence, rules: GateRecipe, slices: tuple[str, ...], baseline: str
) -> tuple[list[RuleOutcome], int, int]:
    """All rules' outcomes, the examples that were compared, and those that were left out."""
    kind = Classes() if evidence.task == "text-classification" else Scores(evidence)
    if found := problems(kind, evidence, rules, slices, baseline):
        return [applied.error(problem) for problem in found], 0, 0
    every = kind.join(evidence, slices)
    kept = every.where(~every.seen)
    dropped = len(every) - len(kept)
    if not len(kept):
        reason = f"All {phrasing.count(dropped, 'test example')} had been seen in training."
        return [applied.error(reason)], 0, dropped
    if evidence.baseline is None:
        alone = [
            applied.enough(kept, dropped, evidence, rules),
            *applied.floors(kept, rules),
            *applied.budgets(evidence, rules, kind.latency_unit),
        ]
        return alone, len(kept), dropped
    before, known = (_comparable(rows, evidence).measured(rules.metric) for rows in (every, kept))
    if not len(known):
        lacking = "has a label that the baseline knows"
        if not isinstance(every, Labels):
            lacking = f"was measured by {rules.metric}"
        reason = f"No test example that counts {lacking}."
        return [applied.error(reason)], 0, dropped
    compared = [
        applied.enough(known, dropped, evidence, rules),
        applied.claim(known, rules, baseline),
        *applied.floors(kept, rules),
        *_new_labels(every, kept, evidence, rules),
        *applied.budgets(evidence, rules, kind.latency_unit),
        *applied.no_harm(before, known, rules, slices, baseline),
        *_never_tested(before, evidence, slices),
    ]
    return compared, len(known), dropped


def _comparable(answers: Answers, evidence: Evidence) -> Answers:
    """The answers on which a comparison is fair: those to labels that the baseline knows."""
    if not isinstance(answers, Labels):
        return answers
    return answers.where(np.isin(answers.truth, evidence.baseline_labels))


def _new_labels(
    every: Answers, kept: Answers, evidence: Evidence, rules: GateRecipe
) -> list[RuleOutcome]:
    if not isinstance(every, Labels):
        return []
    return classification.new_labels(every, kept, evidence, rules)


def _never_tested(
    before: Answers, evidence: Evidence, slices: tuple[str, ...]
) -> list[RuleOutcome]:
    if not isinstance(before, Labels) or "label" not in slices:
        return []
    return list(classification.never_tested(before, evidence))
