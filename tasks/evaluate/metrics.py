"""The metrics of a score table, for reports."""

from __future__ import annotations

import pyarrow as pa

from tasks.contracts.errors import BadData
from tasks.contracts.recipe_data import Task
from tasks.evaluate.language_metrics import language_metrics
from tasks.evaluate.score_table import mean, values_of
from tasks.training.classification_metrics import classification_metrics


def metrics_of(table: pa.Table, task: Task = "text-classification") -> dict[str, float]:
    """One model's metrics on the whole test set.

    Args:
        table: The model's score table.
        task: The model's task.

    Returns:
        For classifiers the metrics of `classification_metrics` and `loss`, the mean of the losses;
        for language models those of `language_metrics`. NaN or infinite if a score is.

    Raises:
        BadData: The table has no rows.
    """
    if not table.num_rows:
        raise BadData(
            "test split", "no examples", "at least one", "give more data to the test split"
        )
    if task != "text-classification":
        return language_metrics(table, task)
    metrics = classification_metrics(values_of(table, "label"), values_of(table, "predicted"))
    return {**metrics, "loss": mean(values_of(table, "loss"))}
