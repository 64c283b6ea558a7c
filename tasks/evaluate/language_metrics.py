"""Metrics of a language model, computed from its score table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tasks.contracts.errors import BadData
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_evaluation import GENERATED, METRICS
from tasks.evaluate import score_table
from tasks.evaluate.score_table import values_of

# By the tokens, where two models cut texts into other tokens, a loss says nothing.
BY_TOKENS = ("loss", "perplexity")


# Metrics for reports


def metrics_of(table: pa.Table, task: Task) -> dict[str, float]:
    """One language model's metrics on the whole test set.

    Args:
        table: What `tasks.evaluate.language_program` wrote.
        task: What the model is for.

    Returns:
        `loss` (nats per token over all tokens; of preferences the mean over inputs), `perplexity`
        (its exponential; not of preferences), and the mean of each other metric that was measured.
        NaN or infinite where a value is.

    Raises:
        BadData: The table has no rows.
    """
    if not table.num_rows:
        raise BadData(
            "test split", "no examples", "at least one", "give more data to the test split"
        )
    found = {}
    for metric in (*METRICS[task], *GENERATED):
        name = column_of(metric)
        if name not in table.column_names or metric in found:
            continue
        if table.column(name).null_count == table.num_rows:
            continue  # Checks that nobody asked for.
        values = values_of(table, name)
        by_tokens = metric in BY_TOKENS and task != "preference"
        weights = values_of(table, "tokens") if by_tokens else np.ones(len(values))
        found[metric] = value_of(metric, values, weights)
    return found


def column_of(metric: str) -> str:
    return "loss" if metric == "perplexity" else metric


def value_of(metric: str, values: np.ndarray, weights: np.ndarray) -> float:
    mean = score_table.weighted_mean(values, weights)
    return exp(mean) if metric == "perplexity" else mean


def exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
