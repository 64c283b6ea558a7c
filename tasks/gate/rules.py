"""The gate's rules for every task: each returns its outcome and explains it in a sentence.

Only one rule, the claim, has a controlled error rate. The other rules set minimum values or reject
clear regressions. The rules on slices and on the guard set have modules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.gate import phrasing, power
from tasks.gate.evidence import (
    NO_BASELINE,
    Evidence,
    MetricComparison,
    PairedAnswers,
)
from tasks.gate.exact_tests import Interval
from tasks.gate.phrasing import MetricPhrasing

POWER = 0.8
"""The probability for which the gate states the smallest detectable difference."""


def alpha_of(rules: GateRecipe) -> float:
    """One-sided error rate of the claim."""
    # Rounded, because 1 - 0.95 is a little more than 0.05.
    return round(1 - rules.confidence, 12)


def two_sided(rules: GateRecipe) -> float:
    """Confidence of the two-sided interval that matches the one-sided test: 90% for 95%."""
    return round(2 * rules.confidence - 1, 12)


def unusable_evidence(reason: str) -> RuleOutcome:
    """The outcome for evidence that cannot be used."""
    return RuleOutcome(
        rule="error", name="usable evidence", metric="", passed=False, sentence=reason
    )


def enough_examples(
    answers: PairedAnswers, excluded: int, evidence: Evidence, rules: GateRecipe
) -> RuleOutcome:
    """Whether the test set is large enough.

    Args:
        answers: The answers that count.
        excluded: How many examples were left out because a model saw them in training.
        evidence: Both models' evidence.
        rules: The recipe's `gate`, for `min_examples`.
    """
    passed = len(answers) >= rules.min_examples
    verb = "counts" if len(answers) == 1 else "count"
    required = f"at least {rules.min_examples} {'is' if rules.min_examples == 1 else 'are'}"
    sentence = (
        f"{phrasing.count(len(answers), 'test example')} {verb}, {'and' if passed else 'but'} "
        f"{required} required.{phrasing.excluded(excluded)}{_unknown_training_data(evidence)}"
    )
    return RuleOutcome(
        rule="enough examples",
        name=f"at least {phrasing.count(rules.min_examples, 'test example')}",
        metric="examples",
        examples=len(answers),
        passed=passed,
        sentence=sentence,
    )


def _unknown_training_data(evidence: Evidence) -> str:
    unknown = ["candidate"] if evidence.candidate_seen is None else []
    if evidence.baseline is not None and evidence.baseline_seen is None:
        unknown.append("baseline")
    if not unknown:
        return ""
    return (
        f" The training data of the {' and the '.join(unknown)} is unknown, so some of these "
        "examples may be in it."
    )


# A claim


def comparison(
    answers: PairedAnswers, rules: GateRecipe, margin: float, opponent: str
) -> RuleOutcome:
    """Whether the candidate is better than its opponent, or not worse by more than a margin.

    Args:
        answers: The candidate's answers, and as the baseline's those of the opponent.
        rules: For the metric and the confidence.
        margin: The accepted difference; 0 means "better".
        opponent: What the candidate is compared with, for sentences: `the baseline`.
    """
    compared, metric = answers.compare(rules, margin), answers.phrasing_of(rules.metric)
    claimed = f"better than {opponent}"
    if margin:
        claimed = f"not worse than {opponent} by more than {metric.margin(margin)}"
    outcome = RuleOutcome(
        rule="not worse" if margin else "better",
        name=f"{metric.name} {claimed}",
        metric=rules.metric,
        candidate=compared.candidate,
        baseline=compared.baseline,
        difference=compared.difference,
        interval=compared.interval,
        p_value=compared.p_value,
        examples=len(answers),
        discordant=compared.discordant,
        detectable=compared.detectable,
        equal_passes=compared.equal_passes,
        passed=compared.p_value <= alpha_of(rules),
        sentence="",
    )
    sentence = _claim_sentence(outcome, compared, metric, rules, margin, opponent)
    return with_sentence(outcome, sentence)


def _claim_sentence(
    outcome: RuleOutcome,
    compared: MetricComparison,
    metric: MetricPhrasing,
    rules: GateRecipe,
    margin: float,
    opponent: str,
) -> str:
    low, high = map(metric.difference, outcome.interval)
    candidate, baseline = phrasing.number(outcome.candidate), phrasing.number(outcome.baseline)
    details = (
        f"difference {metric.difference(outcome.difference)}, {two_sided(rules) * 100:g}% interval "
        f"{low} to {high}, {phrasing.p_value(outcome.p_value, alpha_of(rules))}, "
        f"{phrasing.count(outcome.examples, 'example')}{discordant_pairs(outcome)}"
    )
    if compared.approximate:
        details += ", by the normal approximation"
    if not outcome.passed:
        details += f"; the p-value must be at most {alpha_of(rules):g}"
    return (
        f"{metric.title} is {candidate} against {baseline}{metric.unit} for {opponent}: "
        f"{_finding(outcome, compared, metric, rules, margin)} ({details}). "
        f"{_sensitivity(outcome, compared, metric, rules, margin)}{_uneven(outcome, compared)}"
    )


def _uneven(outcome: RuleOutcome, compared: MetricComparison) -> str:
    """The warning that few long examples decide; empty if they do not.

    No test on losses, which have no bound, can rule out an unseen example that changes the mean.
    """
    if not compared.effective or compared.effective > outcome.examples / 2:
        return ""
    return (
        f" Examples count by their tokens, and so differently that they say as much as "
        f"{compared.effective} of equal length: a rare long one may change the result."
    )


def discordant_pairs(outcome: RuleOutcome) -> str:
    """The end of a list of details: `, 5 gained and 3 lost`; empty without discordant pairs."""
    if outcome.discordant is None:
        return ""
    gained, lost = outcome.discordant
    return f", {gained} gained and {lost} lost"


def _finding(
    outcome: RuleOutcome,
    compared: MetricComparison,
    metric: MetricPhrasing,
    rules: GateRecipe,
    margin: float,
) -> str:
    if outcome.rule == "better":
        return "significantly better" if outcome.passed else "not significantly better"
    if outcome.passed:
        # Many such steps add up; the anchor stops them.
        worse = compared.worse_p <= alpha_of(rules)
        found = f"not worse by more than {metric.margin(margin)}"
        return f"worse beyond chance, within the margin: {found}" if worse else found
    return f"a {metric.setback} of more than {metric.margin(margin)} cannot be ruled out"


def _sensitivity(
    outcome: RuleOutcome,
    compared: MetricComparison,
    metric: MetricPhrasing,
    rules: GateRecipe,
    margin: float,
) -> str:
    """What a test set of this size can show."""
    needed = power.least_examples(margin, alpha_of(rules)) if margin else 0
    if not outcome.passed and outcome.examples < needed:
        return phrasing.too_few_examples(outcome.examples, needed, "margin")
    if margin and compared.equal_passes is None:
        return "On examples that all agree, nothing says how much a test set of this size shows."
    if margin:
        passes = phrasing.percent(compared.equal_passes)
        enough = f"; {POWER:.0%} takes about {compared.examples_needed} examples"
        chance = f"An equally good candidate passes with {passes} probability"
        return f"{chance}{enough if compared.equal_passes < POWER else ''}."
    if outcome.detectable is None:
        return f"This test set is too small to detect any {metric.gain}."
    return (
        f"This test set detects a {metric.gain} of {metric.distance(outcome.detectable)} "
        f"with {POWER * 100:g}% probability."
    )


# Floors


def floors(answers: PairedAnswers, rules: GateRecipe) -> list[RuleOutcome]:
    """One outcome for each of the recipe's floors; for a loss, the floor is a ceiling."""
    found = []
    for metric, floor in sorted(rules.floors.items()):
        rows = answers.scored_by(metric)
        value, interval = rows.estimate(metric, rules.confidence)
        phrased = rows.phrasing_of(metric)
        found.append(floor_outcome(metric, phrased, "", value, floor, interval, len(rows), rules))
    return found


def floor_outcome(
    metric: str,
    phrased: MetricPhrasing,
    slice_: str,
    value: float,
    floor: float,
    interval: Interval,
    examples: int,
    rules: GateRecipe,
) -> RuleOutcome:
    """Whether a value is at or above its floor (a loss: at or below its ceiling)."""
    lower = phrased.lower_is_better
    passed = value <= floor + 1e-12 if lower else value >= floor - 1e-12
    bound, limit = ("at most", "ceiling") if lower else ("at least", "floor")
    relation = bound if passed else "above" if lower else "below"
    shown_value, shown_floor = phrasing.distinct(value, floor)
    low, high = map(phrasing.number, interval)
    return RuleOutcome(
        rule="floor",
        name=f"{phrased.name} {bound} {floor:g}",
        metric=metric,
        slice=slice_,
        candidate=value,
        interval=interval,
        examples=examples,
        passed=passed,
        sentence=f"{phrased.title} is {shown_value}{phrased.unit}, {relation} the {limit} of "
        f"{shown_floor} ({rules.confidence * 100:g}% interval {low} to {high}, "
        f"{phrasing.count(examples, 'example')}).",
    )


# Budgets


def budgets(evidence: Evidence, rules: GateRecipe, latency_unit: str) -> Iterator[RuleOutcome]:
    """One outcome for each of the recipe's budgets: latency and size."""
    if rules.max_latency_ms is not None:
        latency = evidence.latency_ms
        yield _budget("latency", "latency_ms", latency_unit, latency, rules.max_latency_ms)
    if rules.max_size_mb is not None:
        size = evidence.size_bytes / 1e6
        yield _budget("size", "size_mb", "MB", size, rules.max_size_mb)


def _budget(name: str, metric: str, unit: str, value: float | None, limit: float) -> RuleOutcome:
    measured = value is not None and math.isfinite(value) and value > 0
    passed = measured and value <= limit
    sentence = f"The {name} was not measured, so it is not within the budget of {limit:g} {unit}."
    if measured:
        shown_value, shown_limit = phrasing.distinct(value, limit, digits=1)
        relation = "within" if passed else "above"
        sentence = (
            f"The {name} is {shown_value} {unit}, {relation} the budget of {shown_limit} {unit}."
        )
    return RuleOutcome(
        rule="budget",
        name=f"{name} at most {limit:g} {unit}",
        metric=metric,
        candidate=value if measured else None,
        passed=passed,
        sentence=sentence,
    )


# The summary


def summary(
    promoted: bool,
    outcomes: list[RuleOutcome],
    examples: int,
    baseline: str,
    looks: float,
    rules: GateRecipe,
) -> str:
    """The verdict in one sentence, and a second one on repeated use of the test set."""
    opponent = "without a baseline" if baseline == NO_BASELINE else f"against {baseline}"
    failed = [rule for rule in outcomes if not rule.passed and rule.vetoes]
    errors = [rule.sentence for rule in failed if rule.rule == "error"]
    on_examples = f"on {phrasing.count(examples, 'example')}"
    if promoted:
        claims = [rule.name for rule in outcomes if rule.rule in ("better", "not worse", "anchor")]
        shown = claims or [rule.name for rule in outcomes if rule.rule == "floor"]
        sentence = f"Promoted {opponent} {on_examples}: {'; '.join(shown)}."
    elif errors:
        sentence = f"Rejected {opponent}: {' '.join(errors)}"
    else:
        unmet = "; ".join(rule.name for rule in failed)
        sentence = f"Rejected {opponent} {on_examples}. Failed: {unmet}."
    return sentence + _repeated_use(looks, rules)


def _repeated_use(looks: float, rules: GateRecipe) -> str:
    if looks <= 1:
        return ""
    used = f" This test set has now served {looks:g} verdicts"
    if rules.looks:
        return f"{used} of {rules.looks}."
    if rules.claim == "better":
        # Boole's inequality would say more, but as a probability this is never above 1.
        lucky = phrasing.percent(1 - rules.confidence**looks)
        return f"{used}: of so many equally good candidates, one is lucky in up to {lucky}."
    return f"{used}; each further use makes a lucky pass more likely."


def with_sentence(outcome: RuleOutcome, sentence: str) -> RuleOutcome:
    """The outcome with its sentence, which is written from the outcome itself."""
    return outcome.model_copy(update={"sentence": sentence})
