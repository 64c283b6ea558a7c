"""Metrics of a classifier, computed from its score table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import precision_recall_fscore_support

from tasks.contracts.errors import BadData
from tasks.evaluate.score_table import mean, values_of

# Metrics for reports


def metrics_of(table: pa.Table) -> dict[str, float]:
    """One model's metrics on the whole test set.

    Precision, recall and F1 are macro-averaged over the labels that are present in truth, as
    scikit-learn computes them with `zero_division=0`: a label that is only ever answered, and never
    right, lowers the recall of the others but has no term of its own.

    Args:
        table: Answers, with at least `label`, `predicted` and `loss`.

    Returns:
        `accuracy`, `precision`, `recall`, `f1`, and `loss`, the mean of the losses; that is NaN or
        infinite where one of them is.

    Raises:
        BadData: The table has no rows.
    """
    if not table.num_rows:
        raise BadData(
            "test split", "no examples", "at least one", "give more data to the test split"
        )
    metrics = accuracy_and_f1(values_of(table, "label"), values_of(table, "predicted"))
    return {**metrics, "loss": mean(values_of(table, "loss"))}


def accuracy_and_f1(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    labels = sorted(set(truth.tolist()))
    return {
        "accuracy": mean(truth == predicted),
        **scores(truth.astype(str), predicted.astype(str), labels),
    }


def scores(truth: np.ndarray, predicted: np.ndarray, labels: list[Any]) -> dict[str, float]:
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, labels=labels, average="macro", zero_division=0
    )
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
