"""The validation metrics of classifiers as a module of the package `evaluate`.

`evaluate.load("accuracy")` downloads a script from the Hub and runs it; this class is local and
needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np

from tasks.training.classification_metrics import classification_metrics


class ClassificationMetrics(evaluate.Metric):
    """Accuracy and macro-averaged precision, recall and F1.

    Args:
        scratch: A folder that `evaluate` may use; predictions stay in memory.
    """

    def __init__(self, scratch: Path) -> None:
        super().__init__(cache_dir=str(scratch), keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        numbers = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description="Accuracy and macro-averaged precision, recall and F1.",
            citation="",
            inputs_description="predictions and references: class numbers.",
            features=datasets.Features(numbers),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return classification_metrics(np.asarray(references), np.asarray(predictions))
