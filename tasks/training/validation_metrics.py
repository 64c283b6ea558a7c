"""Metrics of a classifier as `evaluate` modules that need no network.

`evaluate.load("accuracy")` downloads a script from the Hub and runs it; these are local classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from sklearn import metrics


class _ClassMetric(evaluate.Metric):
    description: ClassVar[str]

    def _info(self) -> evaluate.MetricInfo:
        numbers = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions and references: class numbers.",
            features=datasets.Features(numbers),
        )


class Accuracy(_ClassMetric):
    """Share of correct predictions."""

    description = "Share of correct predictions."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(metrics.accuracy_score(references, predictions))}


class Precision(_ClassMetric):
    """Macro-averaged precision: correct predictions of a class among all its predictions."""

    description = "Macro-averaged precision; 0 for a class that is never predicted."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        value = metrics.precision_score(references, predictions, average="macro", zero_division=0.0)
        return {"precision": float(value)}


class Recall(_ClassMetric):
    """Macro-averaged recall: correct predictions of a class among all its examples."""

    description = "Macro-averaged recall; 0 for a class without examples."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        value = metrics.recall_score(references, predictions, average="macro", zero_division=0.0)
        return {"recall": float(value)}


class F1(_ClassMetric):
    """Macro-averaged F1: the harmonic mean of a class's precision and recall."""

    description = "Macro-averaged F1; 0 for a class without correct predictions."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        value = metrics.f1_score(references, predictions, average="macro", zero_division=0.0)
        return {"f1": float(value)}


class ClassificationMetrics:
    """Computes accuracy, precision, recall and F1.

    Args:
        scratch: A cache folder for `evaluate`; predictions stay in memory.
    """

    def __init__(self, scratch: Path) -> None:
        options: dict[str, Any] = {"cache_dir": str(scratch), "keep_in_memory": True}
        self._metrics = [kind(**options) for kind in (Accuracy, Precision, Recall, F1)]

    def __call__(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """The metrics by name, each between 0 and 1."""
        found: dict[str, float] = {}
        for metric in self._metrics:
            found |= metric.compute(predictions=predictions, references=references)
        return found
