"""The metrics of a score table, whatever its task."""

from __future__ import annotations

import pyarrow as pa

from tasks.contracts.recipe_data import Task
from tasks.evaluate import classification_metrics, language_metrics


def metrics_of(table: pa.Table, task: Task = "text-classification") -> dict[str, float]:
    """One model's metrics on the whole test set.

    Args:
        table: Its answers.
        task: What the model is for.

    Returns:
        See `classes.metrics_of` and `scores.metrics_of`.

    Raises:
        BadData: The table has no rows.
    """
    if task == "text-classification":
        return classification_metrics.metrics_of(table)
    return language_metrics.metrics_of(table, task)
