"""The gate's rules, whatever the models are for: each gives its outcome, with a sentence.

Exactly one rule, the claim, carries the error rate; the others ask for a minimum or stop clear
harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.gate import exact_tests, phrasing, power
from tasks.gate.evidence import NO_BASELINE, UNTRAINED, Answers, Compared, Evidence, MetricWords
from tasks.gate.exact_tests import Interval

POWER = 0.8
# A slice that would probably miss even so large a loss is too small to tell.
TELLING_LOSS = 0.2
LENGTHS = ("short", "medium", "long")


def alpha_of(rules: GateRecipe) -> float:
    """One-sided error rate of the claim."""
    # Rounded, because 1 - 0.95 is a little more than 0.05.
    return round(1 - rules.confidence, 12)


def two_sided(rules: GateRecipe) -> float:
    """The two-sided confidence whose interval leaves a one-sided test's error on each side."""
    return round(2 * rules.confidence - 1, 12)


def error(reason: str) -> RuleOutcome:
    """The outcome of evidence that cannot be judged."""
    return RuleOutcome(
        rule="error", name="evidence that can be judged", metric="", passed=False, sentence=reason
    )


def enough(answers: Answers, dropped: int, evidence: Evidence, rules: GateRecipe) -> RuleOutcome:
    """Whether the test set is large enough to judge by."""
    passed = len(answers) >= rules.min_examples
    verb = "counts" if len(answers) == 1 else "count"
    counted = f"{phrasing.count(len(answers), 'test example')} {verb}"
    asked = f"at least {rules.min_examples} {'is' if rules.min_examples == 1 else 'are'} asked for"
    sentence = f"{counted}, {'and' if passed else 'but'} {asked}."
    if dropped:
        were = "was" if dropped == 1 else "were"
        sentence += f" {dropped} {were} left out because a model had seen them in training."
    unknown = [
        name
        for name, seen, there in (
            ("candidate", evidence.candidate_seen, True),
            ("baseline", evidence.baseline_seen, evidence.baseline is not None),
        )
        if there and seen is None
    ]
    if unknown:
        sentence += (
            f" What the {' and the '.join(unknown)} had seen is not known: examples from it may "
            "be among them."
        )
    return RuleOutcome(
        rule="enough examples",
        name=f"at least {phrasing.count(rules.min_examples, 'test example')}",
        metric="examples",
        examples=len(answers),
        passed=passed,
        sentence=sentence,
    )


# The claim


def claim(known: Answers, rules: GateRecipe, baseline: str) -> RuleOutcome:
    """The one rule that carries the error rate: its p-value must be at most 1 - confidence.

    The interval is the one that belongs to the one-sided test: 90% for a confidence of 95%.
    """
    better = rules.claim == "better" or baseline == UNTRAINED
    margin = 0.0 if better else rules.margin
    seen, metric = known.compare(rules, margin), known.words(rules.metric)
    opponent = f"the {'untrained base model' if baseline == UNTRAINED else 'baseline'}"
    claimed = f"better than {opponent}"
    if not better:
        claimed = f"not worse than {opponent} by more than {metric.margin(margin)}"
    outcome = RuleOutcome(
        rule="better" if better else "not worse",
        name=f"{metric.name} {claimed}",
        metric=rules.metric,
        candidate=seen.candidate,
        baseline=seen.baseline,
        difference=seen.difference,
        interval=seen.interval,
        p_value=seen.p_value,
        examples=len(known),
        discordant=seen.discordant,
        detectable=seen.detectable,
        passed=seen.p_value <= alpha_of(rules),
        sentence="",
    )
    return _saying(outcome, _claim_sentence(outcome, metric, rules, margin, opponent))


def _claim_sentence(
    outcome: RuleOutcome, metric: MetricWords, rules: GateRecipe, margin: float, opponent: str
) -> str:
    low, high = map(metric.difference, outcome.interval)
    ours, theirs = phrasing.number(outcome.candidate), phrasing.number(outcome.baseline)
    evidence = (
        f"difference {metric.difference(outcome.difference)}, {two_sided(rules) * 100:g}% interval "
        f"{low} to {high}, {phrasing.p_value(outcome.p_value)}, "
        f"{phrasing.count(outcome.examples, 'example')}{_changed(outcome)}"
    )
    if not outcome.passed:
        evidence += f"; a p-value of at most {alpha_of(rules):g} is asked for"
    sentence = (
        f"{metric.title} is {ours} against {theirs}{metric.unit} for {opponent}: "
        f"{_finding(outcome, metric, margin)}"
    )
    return f"{sentence} ({evidence}). {_reach(outcome, metric, rules, margin)}"


def _changed(outcome: RuleOutcome) -> str:
    if outcome.discordant is None:
        return ""
    gained, lost = outcome.discordant
    return f", {gained} gained and {lost} lost"


def _finding(outcome: RuleOutcome, metric: MetricWords, margin: float) -> str:
    if outcome.rule == "better":
        return "better, beyond chance" if outcome.passed else "not shown to be better"
    if outcome.passed:
        return f"not worse by more than {metric.margin(margin)}"
    return f"a {metric.loss} of more than {metric.margin(margin)} cannot be ruled out"


def _reach(outcome: RuleOutcome, metric: MetricWords, rules: GateRecipe, margin: float) -> str:
    """What the test set could have shown at all."""
    needed = power.least_examples(margin, alpha_of(rules)) if margin else 0
    if not outcome.passed and outcome.examples < needed:
        return (
            f"With {phrasing.count(outcome.examples, 'example')} not even two models that always "
            f"agree could show it: that takes {needed}, or a wider margin."
        )
    if outcome.detectable is None:
        return f"This test set is too small to show any {metric.gain}."
    return (
        f"This test set would have shown a {metric.gain} of {metric.distance(outcome.detectable)} "
        f"with {POWER * 100:g}% probability."
    )


# Floors


def floors(kept: Answers, rules: GateRecipe) -> list[RuleOutcome]:
    """The least value of each metric that the recipe asks for; of a loss, the greatest."""
    found = []
    for metric, floor in sorted(rules.floors.items()):
        rows = kept.measured(metric)
        value, interval = rows.value(metric, rules.confidence)
        found.append(
            floor_outcome(metric, rows.words(metric), "", value, floor, interval, len(rows), rules)
        )
    return found


def floor_outcome(
    metric: str,
    shown: MetricWords,
    slice_: str,
    value: float,
    floor: float,
    interval: Interval,
    examples: int,
    rules: GateRecipe,
) -> RuleOutcome:
    """Whether a value reaches its floor (of a loss, keeps to its ceiling)."""
    passed = value <= floor + 1e-12 if shown.lower else value >= floor - 1e-12
    bound, limit = ("at most", "ceiling") if shown.lower else ("at least", "floor")
    relation = bound if passed else "above" if shown.lower else "below"
    ours, theirs = phrasing.apart(value, floor)
    low, high = map(phrasing.number, interval)
    return RuleOutcome(
        rule="floor",
        name=f"{shown.name} {bound} {floor:g}",
        metric=metric,
        slice=slice_,
        candidate=value,
        interval=interval,
        examples=examples,
        passed=passed,
        sentence=f"{shown.title} is {ours}{shown.unit}, {relation} the {limit} of {theirs} "
        f"({rules.confidence * 100:g}% interval {low} to {high}, "
        f"{phrasing.count(examples, 'example')}).",
    )


# Budgets


def budgets(evidence: Evidence, rules: GateRecipe, unit: str) -> Iterator[RuleOutcome]:
    """What the recipe allows in time (in `unit`s) and space."""
    if rules.max_latency_ms is not None:
        latency = evidence.latency_ms
        yield _budget("latency", "latency_ms", unit, latency, rules.max_latency_ms)
    if rules.max_size_mb is not None:
        size = evidence.size_bytes / 1e6
        yield _budget("size", "size_mb", "MB", size, rules.max_size_mb)


def _budget(name: str, metric: str, unit: str, value: float | None, limit: float) -> RuleOutcome:
    measured = value is not None and math.isfinite(value) and value > 0
    passed = measured and value <= limit
    sentence = f"The {name} was not measured, so the budget of {limit:g} {unit} is not kept."
    if measured:
        shown, allowed = phrasing.apart(value, limit, digits=1)
        relation = "within" if passed else "above"
        sentence = f"The {name} is {shown} {unit}, {relation} the budget of {allowed} {unit}."
    return RuleOutcome(
        rule="budget",
        name=f"{name} at most {limit:g} {unit}",
        metric=metric,
        candidate=value if measured else None,
        passed=passed,
        sentence=sentence,
    )


# Slices


@dataclass(frozen=True)
class Slice:
    """Rows that are looked at apart: the slice's name, how to speak of it, and a mask."""

    name: str
    words: str
    rows: np.ndarray


def no_harm(
    before: Answers,
    known: Answers,
    rules: GateRecipe,
    slices: tuple[str, ...],
    baseline: str,
) -> list[RuleOutcome]:
    """One outcome a slice. Only significant harm vetoes, corrected for the number of slices.

    Args:
        before: All answers on which the models can be compared, those to seen examples too.
        known: Those that count.
        rules, slices, baseline: As `decide` takes them.
    """
    may_veto = rules.slice_veto and baseline != UNTRAINED
    parts = [part for name in slices for part in parts_of(name, known.slicing[name])]
    seen = [known.harm(part.rows, rules, len(parts)) for part in parts]
    corrected = exact_tests.holm([each.p_value for each in seen]).tolist()
    metric = known.slice_metric(rules)
    outcomes = [
        _slice_outcome(metric, known.words(metric), part, each, p_value, rules, may_veto)
        for part, each, p_value in zip(parts, seen, corrected, strict=True)
    ]
    for name in slices:
        outcomes += _emptied(name, metric, before, known, may_veto)
    return outcomes


def parts_of(name: str, values: np.ndarray) -> list[Slice]:
    """Cut rows into slices: by token length at the terciles, else by value."""
    if name != "length":
        return [
            Slice(f"{name}={value}", f"{name} {value}", values == value)
            for value in sorted(set(values.tolist()))
        ]
    if not len(values):
        return []
    first, second = np.floor(np.quantile(values, [1 / 3, 2 / 3])).tolist()
    ranges = (
        f"up to {first:g} tokens",
        f"above {first:g}, up to {second:g} tokens",
        f"above {second:g} tokens",
    )
    rows = (values <= first, (values > first) & (values <= second), values > second)
    return [
        Slice(f"length={size}", f"{size} texts ({tokens})", chosen)
        for size, tokens, chosen in zip(LENGTHS, ranges, rows, strict=True)
        if chosen.any()
    ]


def _slice_outcome(
    metric: str,
    shown: MetricWords,
    part: Slice,
    seen: Compared,
    p_value: float,
    rules: GateRecipe,
    may_veto: bool,
) -> RuleOutcome:
    harmed = p_value <= alpha_of(rules)
    tells = harmed or (seen.detectable is not None and seen.detectable <= TELLING_LOSS)
    outcome = RuleOutcome(
        rule="no harm",
        name=f"no harm to {part.words}",
        metric=metric,
        slice=part.name,
        candidate=seen.candidate,
        baseline=seen.baseline,
        difference=seen.difference,
        interval=seen.interval,
        p_value=p_value,
        examples=int(part.rows.sum()),
        discordant=seen.discordant,
        detectable=seen.detectable,
        passed=not harmed,
        vetoes=may_veto and tells,
        sentence="",
    )
    return _saying(outcome, _slice_sentence(outcome, shown, part, harmed, tells, may_veto))


def _slice_sentence(
    outcome: RuleOutcome,
    metric: MetricWords,
    part: Slice,
    harmed: bool,
    tells: bool,
    may_veto: bool,
) -> str:
    least = outcome.detectable
    likely = f"would have shown with {POWER * 100:g}% probability."
    if harmed:
        finding = "significantly worse" + ("" if may_veto else ", which is noted but does not veto")
        reach = ""
    elif tells:
        finding = "not significantly worse"
        reach = f" A {metric.loss} of {metric.distance(least)} {likely}"
    else:
        finding = "too small to tell"
        only = f"only a {metric.loss} of {metric.distance(least)} or more" if least else ""
        reach = f" Of so few examples {only or f'no {metric.loss} at all'} {likely}"
    return (
        f"On {part.words} {metric.name} is {phrasing.number(outcome.candidate)} against "
        f"{phrasing.number(outcome.baseline)}{metric.unit} for the baseline: {finding} (difference "
        f"{metric.difference(outcome.difference)}, corrected {phrasing.p_value(outcome.p_value)}, "
        f"{phrasing.count(outcome.examples, 'example')}{_changed(outcome)}).{reach}"
    )


def _emptied(
    name: str, metric: str, before: Answers, known: Answers, may_veto: bool
) -> Iterator[RuleOutcome]:
    """Slices that the test set has, but only with examples that a model has seen."""
    if name == "length":
        return
    for value in sorted(set(before.slicing[name].tolist()) - set(known.slicing[name].tolist())):
        yield RuleOutcome(
            rule="error",
            name=f"no harm to {name} {value}",
            metric=metric,
            slice=f"{name}={value}",
            passed=False,
            vetoes=may_veto,
            sentence=f"Every test example of {name} {value} had been seen in training, so harm to "
            "it cannot be ruled out. Add examples of it, or set gate.slice_veto to false.",
        )


# The summary


def summary(
    promoted: bool, outcomes: list[RuleOutcome], examples: int, baseline: str, look_number: int
) -> str:
    """The verdict in one sentence."""
    against = "without a baseline" if baseline == NO_BASELINE else f"against {baseline}"
    failed = [rule for rule in outcomes if not rule.passed and rule.vetoes]
    errors = [rule.sentence for rule in failed if rule.rule == "error"]
    if promoted:
        claims = [rule.name for rule in outcomes if rule.rule in ("better", "not worse")]
        shown = claims or [rule.name for rule in outcomes if rule.rule == "floor"]
        told = f"Promoted {against}, on {phrasing.count(examples, 'example')}: {'; '.join(shown)}."
    elif errors:
        told = f"Rejected {against}: {' '.join(errors)}"
    else:
        unmet = "; ".join(rule.name for rule in failed)
        told = (
            f"Rejected {against}, on {phrasing.count(examples, 'example')}, for want of: {unmet}."
        )
    if look_number > 1:
        told += (
            f" This test set has now served {look_number} verdicts: with each, a lucky pass "
            "becomes likelier."
        )
    return told


def _saying(outcome: RuleOutcome, sentence: str) -> RuleOutcome:
    return outcome.model_copy(update={"sentence": sentence})
