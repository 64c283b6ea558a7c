"""What the gate does for classifiers: answers are labels, right or wrong.

The claim and the slices compare the models on examples whose label the baseline knows. Each label
that is new to the baseline has a floor of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.task_tables import LEAST_SUPPORT
from tasks.contracts.verdict import RuleOutcome
from tasks.evaluate.score_table import keys_of, mean, sorted_rows, values_of
from tasks.gate import bootstrap_f1, exact_tests, phrasing, power
from tasks.gate.evidence import (
    Evidence,
    MetricComparison,
    PairedAnswers,
    ScoreTables,
    groups_of,
    seen_by_either,
    unpaired_examples,
)
from tasks.gate.exact_rules import exact_claim, exact_slice
from tasks.gate.exact_tests import Interval
from tasks.gate.phrasing import MetricPhrasing
from tasks.gate.rules import POWER, alpha_of, floor_outcome, two_sided
from tasks.training.classification_metrics import classification_metrics

COLUMNS = ("hash_hi", "hash_lo", "label", "predicted", "correct", "loss", "length")
NAMES = {
    "accuracy": "accuracy",
    "precision": "macro precision",
    "recall": "macro recall",
    "f1": "macro F1",
}


class ClassificationTables(ScoreTables):
    """Score tables with a predicted label per example."""

    def required_columns(self, rules: GateRecipe) -> tuple[str, ...]:
        return COLUMNS

    def may_have_nulls(self, column: str) -> bool:
        return column == "loss"

    def value_problems(
        self, model: str, table: pa.Table, evidence: Evidence, rules: GateRecipe
    ) -> Iterator[str]:
        truth, losses = values_of(table, "label"), values_of(table, "loss")
        known = None if model == "candidate" else evidence.baseline_labels
        counted = np.ones(len(truth), bool) if known is None else np.isin(truth, known)
        if bad := int((~np.isfinite(losses[counted])).sum()):
            yield (
                f"The {model}'s loss is not a finite number on "
                f"{phrasing.count(bad, 'test example')}."
            )
        elif counted.any() and not math.isfinite(mean(losses[counted])):
            yield f"The {model}'s mean loss is not a finite number."
        if (values_of(table, "correct") != (truth == values_of(table, "predicted"))).any():
            yield f"The {model}'s column correct contradicts its predictions."

    def pairing_problems(self, evidence: Evidence, rules: GateRecipe) -> Iterator[str]:
        predicted = set(values_of(evidence.candidate, "predicted").tolist())
        if unknown := sorted(predicted - set(evidence.candidate_labels)):
            yield (
                f"The candidate predicted labels that it does not have: {phrasing.listed(unknown)}."
            )
        if evidence.baseline is None:
            return
        unpaired = list(unpaired_examples(evidence))
        yield from unpaired
        ours, theirs = sorted_rows(evidence.candidate), sorted_rows(evidence.baseline)
        if not unpaired and (values_of(ours, "label") != values_of(theirs, "label")).any():
            yield "Candidate and baseline were scored against different labels."

    def join(self, evidence: Evidence, slices: tuple[str, ...]) -> PairedLabels:
        ours = sorted_rows(evidence.candidate)
        theirs = ours if evidence.baseline is None else sorted_rows(evidence.baseline)
        return PairedLabels(
            truth=values_of(ours, "label"),
            candidate=values_of(ours, "predicted"),
            baseline=values_of(theirs, "predicted"),
            seen=seen_by_either(evidence, keys_of(ours)),
            slice_columns={name: values_of(ours, name) for name in slices},
            groups=groups_of(ours),
        )


@dataclass(frozen=True)
class PairedLabels(PairedAnswers):
    """Both models' predicted labels.

    Attributes:
        truth, candidate, baseline: Labels, strings, shape (n,).
    """

    truth: np.ndarray
    candidate: np.ndarray
    baseline: np.ndarray

    @property
    def candidate_right(self) -> np.ndarray:
        """Whether the candidate is right, bool, shape (n,)."""
        return self.candidate == self.truth

    @property
    def baseline_right(self) -> np.ndarray:
        """Whether the baseline is right, bool, shape (n,)."""
        return self.baseline == self.truth

    @property
    def discordant(self) -> tuple[int, int]:
        """(gained, lost)."""
        return exact_tests.discordant_pairs(self.candidate_right, self.baseline_right)

    def known_to(self, labels: tuple[str, ...] | None) -> PairedLabels:
        return self.where(np.isin(self.truth, labels or ()))

    def phrasing_of(self, metric: str) -> MetricPhrasing:
        return MetricPhrasing(NAMES[metric])

    def slice_metric(self, rules: GateRecipe) -> str:
        return "accuracy"

    def compare(self, rules: GateRecipe, margin: float) -> MetricComparison:
        if rules.metric == "accuracy":
            return exact_claim(
                self.candidate_right, self.baseline_right, rules, margin, self.groups
            )
        return self._compare_by_bootstrap(rules, margin)

    def compare_slice(
        self, rows: np.ndarray, rules: GateRecipe, slice_count: int
    ) -> MetricComparison:
        return exact_slice(
            self.candidate_right, self.baseline_right, rows, rules, slice_count, self.groups
        )

    def estimate(self, metric: str, confidence: float) -> tuple[float, Interval]:
        value = classification_metrics(self.truth, self.candidate)[metric]
        if metric == "accuracy" and self.groups is None:
            right = int(self.candidate_right.sum())
            return value, exact_tests.wilson_interval(right, len(self), confidence)
        return value, bootstrap_f1.bootstrap_interval(
            self.truth, self.candidate, metric, confidence
        )

    def _compare_by_bootstrap(self, rules: GateRecipe, margin: float) -> MetricComparison:
        compared = bootstrap_f1.bootstrap_difference(
            self.truth,
            self.candidate,
            self.baseline,
            rules.metric,
            null=-margin,
            confidence=two_sided(rules),
            groups=self.groups,
        )
        return MetricComparison(
            candidate=compared.candidate,
            baseline=compared.baseline,
            difference=compared.difference,
            interval=compared.interval,
            p_value=compared.p_value,
            detectable=power.detectable_by_error(compared.standard_error, alpha_of(rules), POWER),
            discordant=self.discordant,
            worse_p=self._worse_p(rules) if compared.difference < 0 else 1.0,
            **power.of_equal(len(self), compared.standard_error, margin, alpha_of(rules)),
        )

    def _worse_p(self, rules: GateRecipe) -> float:
        return bootstrap_f1.bootstrap_difference(
            self.truth, self.baseline, self.candidate, rules.metric, groups=self.groups
        ).p_value


def new_label_floors(
    every: PairedLabels, counted: PairedLabels, evidence: Evidence, rules: GateRecipe
) -> list[RuleOutcome]:
    """A floor on the recall of each label that is new to the baseline.

    Args:
        every: All answers, including examples that a model saw in training.
        counted: Those that count.
        evidence: For both models' labels.
        rules: For the floor (`new_label_floor`) and the confidence.
    """
    labels = {*evidence.candidate_labels, *every.truth.tolist()}
    return [
        _new_label_floor(counted.where(counted.truth == label), label, rules)
        for label in sorted(labels - set(evidence.baseline_labels))
    ]


def _new_label_floor(answers: PairedLabels, label: str, rules: GateRecipe) -> RuleOutcome:
    name, floor = f"recall on the new label {label}", rules.new_label_floor
    right, examples = int(answers.candidate_right.sum()), len(answers)
    if examples:
        interval = exact_tests.wilson_interval(right, examples, rules.confidence)
        return floor_outcome(
            "recall",
            MetricPhrasing(name),
            f"label={label}",
            right / examples,
            floor,
            interval,
            examples,
            rules,
        )
    return RuleOutcome(
        rule="floor",
        name=f"{name} at least {floor:g}",
        metric="recall",
        slice=f"label={label}",
        passed=floor == 0,
        inconclusive=True,
        sentence=f"No test example that counts has the new label {label}, so nothing shows that "
        "the candidate learned it. Add examples of it, or set gate.new_label_floor to 0.",
    )


def supported_labels(counted: PairedLabels) -> list[RuleOutcome]:
    """Rejections for labels with too few examples to average over labels; none if all have enough.

    Args:
        counted: The answers that count.
    """
    labels, support = np.unique(counted.truth.astype(str), return_counts=True)
    return [
        RuleOutcome(
            rule="enough examples",
            name=f"at least {LEAST_SUPPORT} test examples of label {label}",
            metric="examples",
            slice=f"label={label}",
            examples=examples,
            passed=False,
            sentence=f"Label {label} has {phrasing.count(examples, 'test example')} that count, "
            f"but a metric averaged over labels needs at least {LEAST_SUPPORT} of each. Add "
            "examples of it, or set gate.metric to accuracy.",
        )
        for label, examples in zip(labels.tolist(), support.tolist(), strict=True)
        if examples < LEAST_SUPPORT
    ]


def untested_labels(comparable: PairedLabels, evidence: Evidence) -> Iterator[RuleOutcome]:
    """Outcomes, never vetoes, for labels of both models that no test example has."""
    shared = set(evidence.candidate_labels) & set(evidence.baseline_labels)
    for label in sorted(shared - set(comparable.truth.tolist())):
        yield RuleOutcome(
            rule="no harm",
            name=f"no harm to label {label}",
            metric="accuracy",
            slice=f"label={label}",
            passed=True,
            vetoes=False,
            inconclusive=True,
            sentence=f"The test set has no example of label {label}, so nothing can be said about "
            "it.",
        )
