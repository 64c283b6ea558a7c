"""Judging classifiers: answers are labels, right or wrong.

The claim and the slices compare the models on examples whose label the baseline knows; each label
that is new to it has a floor of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.evaluate.classification_metrics import accuracy_and_f1, metrics_of, scores
from tasks.evaluate.score_table import keys_of, mean, sorted_rows, values_of
from tasks.gate import bootstrap_f1, exact_tests, phrasing, power
from tasks.gate.evidence import (
    Answers,
    Compared,
    Evidence,
    Judgeable,
    MetricWords,
    seen_by_either,
    unpaired,
)
from tasks.gate.exact_rules import exact_claim, exact_harm
from tasks.gate.exact_tests import Interval
from tasks.gate.rules import POWER, alpha_of, floor_outcome, parts_of, two_sided

COLUMNS = ("hash_hi", "hash_lo", "label", "predicted", "correct", "loss", "length")
NAMES = {
    "accuracy": "accuracy",
    "precision": "macro precision",
    "recall": "macro recall",
    "f1": "macro F1",
}


class Classes(Judgeable):
    """Tables of labels."""

    def columns(self, rules: GateRecipe) -> tuple[str, ...]:
        return COLUMNS

    def may_be_empty(self, column: str) -> bool:
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
            yield f"The {model}'s answers contradict their own count of right ones."

    def contradictions(self, evidence: Evidence, rules: GateRecipe) -> Iterator[str]:
        answers = set(values_of(evidence.candidate, "predicted").tolist())
        if strange := sorted(answers - set(evidence.candidate_labels)):
            yield (
                "The candidate answered with labels that it should not know: "
                f"{phrasing.listed(strange)}."
            )
        if evidence.baseline is None:
            return
        alone = list(unpaired(evidence))
        yield from alone
        ours, theirs = sorted_rows(evidence.candidate), sorted_rows(evidence.baseline)
        if not alone and (values_of(ours, "label") != values_of(theirs, "label")).any():
            yield "Candidate and baseline were scored against different labels."

    def join(self, evidence: Evidence, slices: tuple[str, ...]) -> Labels:
        ours = sorted_rows(evidence.candidate)
        theirs = ours if evidence.baseline is None else sorted_rows(evidence.baseline)
        return Labels(
            truth=values_of(ours, "label"),
            candidate=values_of(ours, "predicted"),
            baseline=values_of(theirs, "predicted"),
            seen=seen_by_either(evidence, keys_of(ours)),
            slicing={name: values_of(ours, name) for name in slices},
        )


@dataclass(frozen=True)
class Labels(Answers):
    """Both models' labels.

    Attributes:
        truth, candidate, baseline: Labels, strings.
    """

    truth: np.ndarray
    candidate: np.ndarray
    baseline: np.ndarray

    @property
    def candidate_right(self) -> np.ndarray:
        """Where the candidate is right."""
        return self.candidate == self.truth

    @property
    def baseline_right(self) -> np.ndarray:
        """Where the baseline is right."""
        return self.baseline == self.truth

    @property
    def discordant(self) -> tuple[int, int]:
        """(gained, lost)."""
        return exact_tests.discordant_pairs(self.candidate_right, self.baseline_right)

    def words(self, metric: str) -> MetricWords:
        return MetricWords(NAMES[metric])

    def slice_metric(self, rules: GateRecipe) -> str:
        return "accuracy"

    def compare(self, rules: GateRecipe, margin: float) -> Compared:
        if rules.metric == "accuracy":
            return exact_claim(*self._right(), rules, margin)
        return self._by_bootstrap(rules, margin)

    def harm(self, rows: np.ndarray, rules: GateRecipe, family: int) -> Compared:
        return exact_harm(*self._right(), rows, rules, family)

    def value(self, metric: str, confidence: float) -> tuple[float, Interval]:
        value = accuracy_and_f1(self.truth, self.candidate)[metric]
        if metric == "accuracy":
            right = int(self.candidate_right.sum())
            return value, exact_tests.wilson_interval(right, len(self), confidence)
        return value, bootstrap_f1.bootstrap_interval(
            self.truth, self.candidate, metric, confidence
        )

    def _right(self) -> tuple[np.ndarray, np.ndarray]:
        return self.candidate_right, self.baseline_right

    def _by_bootstrap(self, rules: GateRecipe, margin: float) -> Compared:
        seen = bootstrap_f1.bootstrap_difference(
            self.truth,
            self.candidate,
            self.baseline,
            rules.metric,
            null=-margin,
            confidence=two_sided(rules),
        )
        return Compared(
            candidate=seen.candidate,
            baseline=seen.baseline,
            difference=seen.difference,
            interval=seen.interval,
            p_value=seen.p_value,
            detectable=power.detectable_by_error(seen.standard_error, alpha_of(rules), POWER),
            discordant=self.discordant,
        )


def new_labels(
    every: Labels, kept: Labels, evidence: Evidence, rules: GateRecipe
) -> list[RuleOutcome]:
    """A floor on the recall of each label that the baseline never knew."""
    labels = {*evidence.candidate_labels, *every.truth.tolist()}
    return [
        _new_label(kept.where(kept.truth == label), label, rules)
        for label in sorted(labels - set(evidence.baseline_labels))
    ]


def _new_label(answers: Labels, label: str, rules: GateRecipe) -> RuleOutcome:
    floor, right = rules.new_label_floor, int(answers.candidate_right.sum())
    if len(answers):
        recall = right / len(answers)
        interval = exact_tests.wilson_interval(right, len(answers), rules.confidence)
        name = f"recall on the new label {label}"
        return floor_outcome(
            "recall",
            MetricWords(name),
            f"label={label}",
            recall,
            floor,
            interval,
            len(answers),
            rules,
        )
    return RuleOutcome(
        rule="floor",
        name=f"recall on the new label {label} at least {floor:g}",
        metric="recall",
        slice=f"label={label}",
        passed=floor == 0,
        sentence=f"No test example that counts has the new label {label}, so nothing shows that "
        "the candidate has learnt it. Add examples of it, or set gate.new_label_floor to 0.",
    )


def never_tested(before: Labels, evidence: Evidence) -> Iterator[RuleOutcome]:
    """Labels that both models know, but of which the test set has no example."""
    shared = set(evidence.candidate_labels) & set(evidence.baseline_labels)
    for label in sorted(shared - set(before.truth.tolist())):
        yield RuleOutcome(
            rule="no harm",
            name=f"no harm to label {label}",
            metric="accuracy",
            slice=f"label={label}",
            passed=True,
            vetoes=False,
            sentence=f"The test set has no example of label {label}: too small to tell.",
        )


def slice_metrics(table: pa.Table, slices: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """One model's metrics, slice by slice.

    On a slice by label, precision, recall and F1 are those of that label against the rest, on the
    whole test set, for within the slice its precision is 1 by construction. On other slices they
    are macro-averaged over the labels that are present in the slice's truth.

    Args:
        table: Answers, as `metrics_of` takes them, with the slicing columns; rows with an empty
            value form the slice `(none)`.
        slices: `label`, `length` (cut at the terciles), or string columns.

    Returns:
        For each slice (`label=sport`, `length=short`) the metrics of `metrics_of`, and `examples`.
    """
    truth, predicted = values_of(table, "label"), values_of(table, "predicted")
    found: dict[str, dict[str, float]] = {}
    for name in slices:
        values = values_of(table, name)
        for part in parts_of(name, values):
            metrics = metrics_of(table.filter(pa.array(part.rows)))
            if name == "label":
                label = values[part.rows][0]
                metrics.update(scores(truth == label, predicted == label, [True]))
            found[part.name] = {**metrics, "examples": float(part.rows.sum())}
    return found
