"""Metrics of a language model, computed from its score table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tasks.contracts.recipe_data import Task
from tasks.contracts.task_tables import GENERATED, METRICS
from tasks.evaluate.score_table import values_of, weighted_mean

BY_TOKENS = ("loss", "perplexity")
"""Metrics per token. They cannot be compared if two models split texts into different tokens."""


def language_metrics(table: pa.Table, task: Task) -> dict[str, float]:
    """One language model's metrics on the whole test set.

    Args:
        table: The score table that `tasks.evaluate.language_program` writes, with at least a row.
        task: The model's task.

    Returns:
        `loss` (nats per token over all tokens; for preferences the mean over inputs), `perplexity`
        (its exponential; not for preferences), and the mean of each other measured metric. NaN or
        infinite if a score is.
    """
    found = {}
    for metric in (*METRICS[task], *GENERATED):
        name = column_of(metric)
        if name not in table.column_names or metric in found:
            continue
        if table.column(name).null_count == table.num_rows:
            continue  # The recipe has no checks.
        values = values_of(table, name)
        by_tokens = metric in BY_TOKENS and task != "preference"
        weights = values_of(table, "tokens") if by_tokens else np.ones(len(values))
        found[metric] = value_of(metric, values, weights)
    return found


def column_of(metric: str) -> str:
    """The column that a metric is computed from."""
    return "loss" if metric == "perplexity" else metric


def value_of(metric: str, values: np.ndarray, weights: np.ndarray) -> float:
    """The value of a metric.

    Args:
        metric: Its name.
        values: Its column, shape (n,).
        weights: Weight of each example, such as its tokens, shape (n,).
    """
    mean = weighted_mean(values, weights)
    return exp(mean) if metric == "perplexity" else mean


def exp(value: float) -> float:
    """The exponential; infinite, without a warning, if it overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))
