"""The claim, the one rule with a controlled error rate, and the budget of looks that shares it."""

from __future__ import annotations

import math

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.gate import phrasing
from tasks.gate.evidence import UNTRAINED, MetricComparison, PairedAnswers
from tasks.gate.rules import alpha_of, comparison, with_sentence


def claim(
    answers: PairedAnswers, rules: GateRecipe, baseline: str, looks: float = 0.0
) -> RuleOutcome:
    """The rule with a controlled error rate: its p-value must be at most 1 - confidence; of a
    budget of looks, each gets an equal part of that (Bonferroni).

    The interval matches the one-sided test: 90% for a confidence of 95%.

    Args:
        answers: The answers that count.
        rules: The recipe's `gate`.
        baseline: As in `decide`.
        looks: How many verdicts have used the test set, this one included.
    """
    better = rules.claim == "better" or baseline == UNTRAINED
    opponent = f"the {'untrained base model' if baseline == UNTRAINED else 'baseline'}"
    margin = 0.0 if better else rules.margin
    if not rules.looks:
        return comparison(answers, rules, margin, opponent)
    shared = rules.model_copy(update={"confidence": 1 - alpha_of(rules) / rules.looks})
    outcome = comparison(answers, shared, margin, opponent)
    alone = answers.compare(rules, margin)
    said = f"{outcome.sentence} {_price(outcome, alone, answers, rules)}"
    if looks <= rules.looks:
        return with_sentence(outcome, said)
    spent = f"The budget of {rules.looks} looks at the test set is spent: this is look {looks:g}."
    if not better:
        warning = "A lucky pass is more likely than stated."
        return with_sentence(outcome, f"{said} {spent} {warning}")
    return RuleOutcome(
        rule="error",
        name=f"a test set that is not used up, for {outcome.name}",
        metric=outcome.metric,
        examples=outcome.examples,
        passed=False,
        sentence=f"{said} {spent} {_fresh_rows(len(answers), rules.looks, looks)}",
    )


def _price(
    outcome: RuleOutcome, alone: MetricComparison, answers: PairedAnswers, rules: GateRecipe
) -> str:
    """What a budget of looks costs."""
    share = f"{alpha_of(rules) / rules.looks:.2g} instead of {alpha_of(rules):g}"
    price = f"A budget of {rules.looks} looks asks for a p-value of at most {share}"
    if outcome.equal_passes is not None and alone.equal_passes is not None:
        one, other = map(phrasing.percent, (outcome.equal_passes, alone.equal_passes))
        return f"{price}; without it, an equally good candidate passes with {other}, not {one}."
    if outcome.detectable is not None and alone.detectable is not None:
        metric = answers.phrasing_of(rules.metric)
        one, other = map(metric.distance, (outcome.detectable, alone.detectable))
        return f"{price}; without it, a {metric.gain} of {other} is detected as surely as {one}."
    return f"{price}."


def _fresh_rows(examples: int, budget: int, looks: float) -> str:
    """How many new test rows make room for one more look."""
    if budget == 1:
        return "The test set is used up: only new rows can serve another verdict."
    # Rows are shared in proportion: looks - 1 falls to (looks - 1) * examples / (examples + fresh).
    fresh = math.ceil(examples * ((looks - 1) / (budget - 1) - 1))
    return f"The test set is used up: {max(fresh, 1):,} fresh rows are needed."
