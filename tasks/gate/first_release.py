"""What the gate requires of a first classifier, when no model is deployed yet.

Almost anything beats an untrained head, so a first classifier must also be better than always
answering the most frequent label, and must recognize every label that has enough test examples.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.gate import exact_tests, phrasing
from tasks.gate.classification import PairedLabels
from tasks.gate.rules import comparison

MIN_EXAMPLES = 10
"""Test examples that a label needs before it must be recognized once."""


def first_release_rules(answers: PairedLabels, rules: GateRecipe) -> list[RuleOutcome]:
    """The rules for a first classifier.

    Args:
        answers: The candidate's answers that count, at least one.
        rules: For the metric and the confidence.
    """
    return [_better_than_majority(answers, rules), *_recognized_labels(answers, rules)]


def _better_than_majority(answers: PairedLabels, rules: GateRecipe) -> RuleOutcome:
    labels, counts = np.unique(answers.truth, return_counts=True)
    label = str(labels[np.argmax(counts)])
    constant = np.full(len(answers), label, dtype=answers.truth.dtype)
    constant_model = dataclasses.replace(answers, baseline=constant)
    return comparison(constant_model, rules, 0.0, f"always answering {label!r}")


def _recognized_labels(answers: PairedLabels, rules: GateRecipe) -> list[RuleOutcome]:
    found = []
    for label in np.unique(answers.truth).tolist():
        of_label = answers.where(answers.truth == label)
        right, examples = int(of_label.candidate_right.sum()), len(of_label)
        if examples < MIN_EXAMPLES:
            continue
        recall = f"recall on the label {label!r}"
        sentence = f"{right} of {examples} test examples of the label {label!r} were recognized."
        if not right:
            sentence = (
                f"None of the {phrasing.count(examples, 'test example')} of the label {label!r} "
                "was recognized: check that no other label is the same in another spelling, and "
                "that it has enough training examples."
            )
        found.append(
            RuleOutcome(
                rule="floor",
                name=f"{recall} above 0",
                metric="recall",
                slice=f"label={label}",
                candidate=right / examples,
                interval=exact_tests.wilson_interval(right, examples, rules.confidence),
                examples=examples,
                passed=right > 0,
                sentence=sentence,
            )
        )
    return found
