"""Accuracy and macro-averaged precision, recall and F1, as scikit-learn computes them.

Training, scoring and the gate share this definition, so the epoch that training keeps is the best
one by the metric that the gate decides by.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, precision_recall_fscore_support


def classification_metrics(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Metrics of predicted classes.

    Averages are over the classes that occur in `truth`: a class that is only predicted lowers the
    recall of the others but has no term of its own. 0 / 0 counts as 0.

    Args:
        truth: The right classes, strings or numbers, shape (n,).
        predicted: The predicted classes, shape (n,).

    Returns:
        `accuracy`, `precision`, `recall` and `f1`, each between 0 and 1.
    """
    truth, predicted = np.asarray(truth).astype(str), np.asarray(predicted).astype(str)
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, labels=np.unique(truth), average="macro", zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }
