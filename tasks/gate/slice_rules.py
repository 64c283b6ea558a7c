"""The gate's rules on slices: only a significant regression on a slice rejects a candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.gate import exact_tests, phrasing
from tasks.gate.evidence import UNTRAINED, MetricComparison, PairedAnswers
from tasks.gate.phrasing import MetricPhrasing
from tasks.gate.rules import POWER, alpha_of, discordant_pairs, with_sentence

# A slice on which even so large a drop would probably go undetected is too small to tell.
LARGEST_HIDDEN_DROP = 0.2
LENGTHS = ("short", "medium", "long")


@dataclass(frozen=True)
class Slice:
    """A part of the test set.

    Attributes:
        name: `label=sport`, `length=short`.
        phrase: The slice in a sentence: `label sport`.
        rows: A mask, bool, shape (n,).
    """

    name: str
    phrase: str
    rows: np.ndarray


def slice_outcomes(
    every: PairedAnswers,
    counted: PairedAnswers,
    rules: GateRecipe,
    slices: tuple[str, ...],
    baseline: str,
) -> list[RuleOutcome]:
    """One outcome for each slice; only significant regressions veto. None on a first run: whether a
    slice is better than an untrained model says nothing.

    P-values are corrected for the number of slices (Holm 1979).

    Args:
        every: All answers on which the models can be compared, including examples that a model saw
            in training.
        counted: Those that count.
        rules, slices, baseline: As in `decide`.
    """
    if baseline == UNTRAINED:
        return []
    may_veto = rules.slice_veto
    parts = [part for name in slices for part in slices_of(name, counted.slice_columns[name])]
    compared = [counted.compare_slice(part.rows, rules, len(parts)) for part in parts]
    corrected = exact_tests.holm([each.p_value for each in compared]).tolist()
    metric = counted.slice_metric(rules)
    outcomes = [
        _slice_outcome(metric, counted.phrasing_of(metric), part, each, p_value, rules, may_veto)
        for part, each, p_value in zip(parts, compared, corrected, strict=True)
    ]
    for name in slices:
        outcomes += _slices_without_examples(name, metric, every, counted, may_veto)
    return outcomes


def slices_of(name: str, values: np.ndarray) -> list[Slice]:
    """Divide rows into slices: token lengths at the terciles, other columns by value.

    Args:
        name: The column's name; `length` is divided at the terciles.
        values: The column, shape (n,).
    """
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
    phrased: MetricPhrasing,
    part: Slice,
    compared: MetricComparison,
    p_value: float,
    rules: GateRecipe,
    may_veto: bool,
) -> RuleOutcome:
    worse = p_value <= alpha_of(rules)
    detectable = compared.detectable
    conclusive = worse or (detectable is not None and detectable <= LARGEST_HIDDEN_DROP)
    outcome = RuleOutcome(
        rule="no harm",
        name=f"no harm to {part.phrase}",
        metric=metric,
        slice=part.name,
        candidate=compared.candidate,
        baseline=compared.baseline,
        difference=compared.difference,
        interval=compared.interval,
        p_value=p_value,
        examples=int(part.rows.sum()),
        discordant=compared.discordant,
        detectable=detectable,
        passed=not worse,
        vetoes=may_veto and conclusive,
        inconclusive=not conclusive,
        sentence="",
    )
    sentence = _slice_sentence(outcome, phrased, part, conclusive, may_veto, alpha_of(rules))
    return with_sentence(outcome, sentence)


def _slice_sentence(
    outcome: RuleOutcome,
    metric: MetricPhrasing,
    part: Slice,
    conclusive: bool,
    may_veto: bool,
    limit: float,
) -> str:
    details = (
        f"difference {metric.difference(outcome.difference)}, corrected "
        f"{phrasing.p_value(outcome.p_value, limit)}, {phrasing.count(outcome.examples, 'example')}"
        f"{discordant_pairs(outcome)}"
    )
    return (
        f"On {part.phrase}, {metric.name} is {phrasing.number(outcome.candidate)} against "
        f"{phrasing.number(outcome.baseline)}{metric.unit} for the baseline: "
        f"{_finding(outcome, may_veto)} ({details})."
        f"{_sensitivity(outcome, metric, conclusive)}"
    )


def _finding(outcome: RuleOutcome, may_veto: bool) -> str:
    if not outcome.passed:
        return "significantly worse" + ("" if may_veto else ", which is reported but does not veto")
    return "too small to tell" if outcome.inconclusive else "not significantly worse"


def _sensitivity(outcome: RuleOutcome, metric: MetricPhrasing, conclusive: bool) -> str:
    """What a slice of this size can show; empty if it did show a regression."""
    if not outcome.passed:
        return ""
    probability = f"with {POWER * 100:g}% probability."
    if outcome.detectable is None:
        return f" So few examples cannot detect any {metric.setback} {probability}"
    least = f"a {metric.setback} of {metric.distance(outcome.detectable)}"
    if conclusive:
        return f" This slice detects {least} {probability}"
    return f" So few examples detect only {least} or more {probability}"


def _slices_without_examples(
    name: str, metric: str, every: PairedAnswers, counted: PairedAnswers, may_veto: bool
) -> Iterator[RuleOutcome]:
    """Slices whose test examples were all seen in training."""
    if name == "length":
        return
    before, after = (set(each.slice_columns[name].tolist()) for each in (every, counted))
    for value in sorted(before - after):
        yield RuleOutcome(
            rule="error",
            name=f"no harm to {name} {value}",
            metric=metric,
            slice=f"{name}={value}",
            passed=False,
            vetoes=may_veto,
            sentence=f"A model saw every test example of {name} {value} in training, so harm to it "
            "cannot be ruled out. Add new examples of it, or set gate.slice_veto to false.",
        )
