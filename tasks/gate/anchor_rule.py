"""The rule on the anchor: an earlier release that every candidate must not be worse than.

"Not worse than what is deployed" alone lets quality creep down: each step is within the margin, and
nobody sees the sum. The anchor stays where it is until a release is better than it beyond chance,
so the sum is bounded, too (Feng, Emerson and Simon 2021, Biometrics 77:31).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import AnchorState, RuleOutcome
from tasks.gate.evidence import Evidence, PairedAnswers, ScoreTables, problems
from tasks.gate.rules import alpha_of, comparison

PROOF_SHARE = 20
"""The anchor moves only if a candidate is better at this part of the claim's error rate: over
many retrains, chance would move it upwards, to where an honest candidate cannot follow."""


@dataclass(frozen=True)
class Anchor:
    """What the gate knows about the anchor.

    Attributes:
        state: Which release it is.
        scores: Its score table for the test examples; None if it could not be scored.
        labels: The labels that it can predict; empty for language models.
        seen: Hashes of the inputs it was trained on, as in `Evidence`.
        metric: By which it passed its own gate; empty if unknown.
        problem: Why it could not be scored, and what to do; empty if it could.
        fixed: Whether the recipe names it, so that it never moves.
    """

    state: AnchorState
    scores: pa.Table | None = None
    labels: tuple[str, ...] = ()
    seen: np.ndarray | None = None
    metric: str = ""
    problem: str = ""
    fixed: bool = False


def anchor_outcome(
    anchor: Anchor, tables: ScoreTables, evidence: Evidence, rules: GateRecipe
) -> tuple[RuleOutcome, AnchorState]:
    """Whether the candidate is not worse than the anchor by more than its margin.

    If labels or metric have changed since, the distance is stated, and the candidate becomes the
    anchor. An anchor that could not be scored rejects.

    Args:
        anchor: The anchor.
        tables: For pairing the answers.
        evidence: For the candidate's answers.
        rules: With the metric resolved.

    Returns:
        The outcome, and the anchor's state with why it moves.
    """
    opponent = f"the anchor {anchor.state.version}"
    changed = "" if anchor.fixed else _changed(anchor, evidence, rules)
    moved = anchor.state.model_copy(update={"moves": changed})
    if rules.metric == "preferred":
        reason = "preferences exist against the baseline only"
        return _untested(rules, f"No comparison with {opponent} was made: {reason}."), moved
    if anchor.scores is None:
        return _unusable(rules, f"{anchor.problem} {_REMEDY}", vetoes=not changed), moved
    against = replace(
        evidence,
        baseline=anchor.scores,
        baseline_labels=anchor.labels,
        baseline_seen=anchor.seen,
    )
    if found := problems(tables, against, rules, (), anchor.state.version):
        reason = " ".join(found).replace("baseline", "anchor")
        return _unusable(rules, f"{reason} {_REMEDY}", vetoes=not changed), moved
    answers = _compared(tables, against, rules)
    if not len(answers):
        reason = f"No test example is left on which {opponent} can be compared."
        return _unusable(rules, f"{reason} {_REMEDY}", vetoes=not changed), moved
    margin = rules.anchor_margin or rules.margin
    outcome = comparison(answers, rules, margin, opponent)
    outcome = outcome.model_copy(update={"rule": "anchor", "vetoes": not changed})
    if changed:
        sentence = f"{outcome.sentence} This does not count: {changed}."
        return outcome.model_copy(update={"sentence": sentence}), moved
    proven = answers.compare(rules, 0.0).p_value <= alpha_of(rules) / PROOF_SHARE
    if proven and not anchor.fixed:
        why = f"it is better than version {anchor.state.version} beyond chance"
        sentence = f"{outcome.sentence} Once released, the candidate is the anchor: {why}."
        outcome = outcome.model_copy(update={"sentence": sentence})
        moved = anchor.state.model_copy(update={"moves": why})
    return outcome, moved


_REMEDY = (
    "Restore it at one of its targets, or set gate.anchor to a version that is there, or to none."
)


def _changed(anchor: Anchor, evidence: Evidence, rules: GateRecipe) -> str:
    """Why the anchor and the candidate are not measured alike any more; empty if they are."""
    if anchor.metric and anchor.metric != rules.metric:
        return f"gate.metric has changed from {anchor.metric} to {rules.metric}"
    if anchor.scores is not None and set(anchor.labels) != set(evidence.candidate_labels):
        return "the labels have changed"
    return ""


def _compared(tables: ScoreTables, against: Evidence, rules: GateRecipe) -> PairedAnswers:
    answers = tables.join(against, ()).known_to(against.baseline_labels).scored_by(rules.metric)
    return answers.where(~answers.seen)


def _name(rules: GateRecipe) -> str:
    return f"not worse than the anchor by more than {rules.anchor_margin or rules.margin:g}"


def _unusable(rules: GateRecipe, reason: str, vetoes: bool) -> RuleOutcome:
    return RuleOutcome(
        rule="error",
        name=_name(rules),
        metric=rules.metric,
        passed=False,
        vetoes=vetoes,
        sentence=reason,
    )


def _untested(rules: GateRecipe, reason: str) -> RuleOutcome:
    return RuleOutcome(
        rule="anchor",
        name=_name(rules),
        metric=rules.metric,
        passed=True,
        vetoes=False,
        inconclusive=True,
        sentence=reason,
    )
