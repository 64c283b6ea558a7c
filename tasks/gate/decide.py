"""Decide whether the candidate may replace what is deployed.

Both models have answered the same test examples. `decide` turns their answers and the recipe's
rules into a verdict. It is a pure function: no clock, no network, and random numbers are seeded
from the data. `evidence` validates the input; `rules`, `claim_rule`, `anchor_rule`, `slice_rules`
and `guard_rule` hold the rules; `first_release` holds those for a first classifier;
`classification` and `language` hold what differs between the tasks. Only one rule, the claim, has a
controlled error rate; the others set minimum values or reject clear regressions. Missing values and
values that are not numbers reject, with the reason.
"""

from __future__ import annotations

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.task_tables import MACRO, METRICS
from tasks.contracts.verdict import RuleOutcome, Verdict
from tasks.gate import classification
from tasks.gate import rules as gate_rules
from tasks.gate.anchor_rule import Anchor, anchor_outcome
from tasks.gate.claim_rule import claim
from tasks.gate.classification import ClassificationTables, PairedLabels
from tasks.gate.evidence import (
    NO_BASELINE,
    UNTRAINED,
    Evidence,
    PairedAnswers,
    ScoreTables,
    baseline_seen_status,
    problems,
)
from tasks.gate.first_release import first_release_rules
from tasks.gate.guard_rule import Guard, guard_rule
from tasks.gate.language import LanguageTables
from tasks.gate.slice_rules import slice_outcomes


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
    looks: float = 0.0,
    guard: Guard | None = None,
    anchor: Anchor | None = None,
) -> Verdict:
    """Decide whether the candidate may replace the baseline.

    Examples that either model saw in training are excluded. The claim and the slices compare the
    models on examples whose label the baseline knows; the floors cover all examples; each label
    that is new to the baseline has a floor of its own. Against the untrained base model the claim
    is always "better" and slices do not veto. Without a baseline only floors and budgets decide.

    Args:
        evidence: Both models' answers, and the candidate's latency and size.
        rules: The recipe's `gate`.
        slices: The recipe's `evaluation.slices`: `label`, `length`, or string columns.
        candidate_digest: Digest of the candidate's artifact.
        baseline: A release's version, a model's name, `untrained base` or `none`.
        baseline_digest: Digest of the baseline's artifact; empty without one.
        baseline_entry: Number of the log entry that deployed the baseline; 0 without one.
        test_digest: The test set's identity.
        look_number: How many verdicts have used the test set, including this one.
        looks: The same, counted by the rows that they share; 0 if unknown.
        guard: Both models' scores on the guard set; None without one.
        anchor: The anchor; None without one.

    Returns:
        The verdict. Incomplete or contradictory evidence never raises: it rejects, by rules of
        kind `error`.
    """
    if rules.metric == "auto":
        rules = rules.model_copy(update={"metric": METRICS[evidence.task][0]})
    looks = looks or float(look_number)
    outcomes, examples, excluded = _apply_rules(evidence, rules, slices, baseline, looks)
    state = anchor.state if anchor else None
    if anchor and anchor.state.entry and examples:
        anchored, state = anchor_outcome(anchor, _tables(evidence), evidence, rules)
        # After the claim, which it supplements.
        outcomes.insert(2, anchored)
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
        looks=looks,
        examples=examples,
        dropped=excluded,
        baseline_seen=baseline_seen_status(evidence, baseline),
        anchor=state,
        summary=gate_rules.summary(promoted, outcomes, examples, baseline, looks, rules),
    )


def _apply_rules(
    evidence: Evidence, rules: GateRecipe, slices: tuple[str, ...], baseline: str, looks: float
) -> tuple[list[RuleOutcome], int, int]:
    """The outcomes of all rules, and how many examples were compared and excluded."""
    classifier, tables = evidence.task == "text-classification", _tables(evidence)
    if found := problems(tables, evidence, rules, slices, baseline):
        return [gate_rules.unusable_evidence(problem) for problem in found], 0, 0
    every = tables.join(evidence, slices)
    counted = every.where(~every.seen)
    excluded = len(every) - len(counted)
    if not len(counted):
        reason = f"A model saw {_all_examples(excluded)} in training."
        return [gate_rules.unusable_evidence(reason)], 0, excluded
    minimums = [
        *_first_release_rules(counted, rules, baseline),
        *_supported_labels(counted, rules),
        *gate_rules.floors(counted, rules),
        *_new_label_floors(every, counted, evidence, rules),
        *gate_rules.budgets(evidence, rules, tables.latency_unit),
    ]
    if evidence.baseline is None:
        enough = gate_rules.enough_examples(counted, excluded, evidence, rules)
        return [enough, *minimums], len(counted), excluded
    shared = every.known_to(evidence.baseline_labels).scored_by(rules.metric)
    compared = shared.where(~shared.seen)
    if not len(compared):
        lacking = "has a label that the baseline knows"
        if not classifier:
            lacking = f"has a value of {rules.metric}"
        reason = f"No test example that counts {lacking}."
        return [gate_rules.unusable_evidence(reason)], 0, excluded
    outcomes = [
        gate_rules.enough_examples(compared, excluded, evidence, rules),
        claim(compared, rules, baseline, looks),
        *minimums,
        *slice_outcomes(shared, compared, rules, slices, baseline),
        *_untested_labels(shared, evidence, slices),
    ]
    return outcomes, len(compared), excluded


def _tables(evidence: Evidence) -> ScoreTables:
    if evidence.task == "text-classification":
        return ClassificationTables()
    return LanguageTables(evidence)


def _all_examples(examples: int) -> str:
    return "the only test example" if examples == 1 else f"all {examples} test examples"


def _new_label_floors(
    every: PairedAnswers, counted: PairedAnswers, evidence: Evidence, rules: GateRecipe
) -> list[RuleOutcome]:
    if evidence.baseline is None or not isinstance(every, PairedLabels):
        return []
    return classification.new_label_floors(every, counted, evidence, rules)


def _supported_labels(counted: PairedAnswers, rules: GateRecipe) -> list[RuleOutcome]:
    if rules.metric not in MACRO or not isinstance(counted, PairedLabels):
        return []
    return classification.supported_labels(counted)


def _first_release_rules(
    counted: PairedAnswers, rules: GateRecipe, baseline: str
) -> list[RuleOutcome]:
    first = baseline in (UNTRAINED, NO_BASELINE)
    if not first or not isinstance(counted, PairedLabels):
        return []
    return first_release_rules(counted, rules)


def _untested_labels(
    shared: PairedAnswers, evidence: Evidence, slices: tuple[str, ...]
) -> list[RuleOutcome]:
    if not isinstance(shared, PairedLabels) or "label" not in slices:
        return []
    return list(classification.untested_labels(shared, evidence))
