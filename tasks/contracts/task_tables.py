"""What depends on the task alone: its row formats and its metrics.

The only module of this folder whose content decides results, so cache keys cover it
(`tasks.runtime.code_digest`).
"""

from __future__ import annotations

from typing import Literal

from tasks.contracts.recipe_data import RowFormat

ROW_FORMATS: dict[str, tuple[RowFormat, ...]] = {
    "text-classification": (),
    "completion": ("text", "prompt-completion"),
    "instruction": ("messages", "prompt-completion", "alpaca", "sharegpt"),
    "preference": ("preference",),
}
"""The row formats that each task can be trained on."""

Metric = Literal[
    "accuracy",
    "precision",
    "recall",
    "f1",
    "loss",
    "perplexity",
    "exact_match",
    "token_f1",
    "rouge_l",
    "checks",
    "preferred",
]
GENERATED: tuple[Metric, ...] = ("exact_match", "token_f1", "rouge_l", "checks", "preferred")
"""Metrics of generated answers; they need `evaluation.generate_tokens`."""
METRICS: dict[str, tuple[Metric, ...]] = {
    "text-classification": ("accuracy", "precision", "recall", "f1"),
    "completion": ("loss", "perplexity", *GENERATED),
    "instruction": ("loss", "perplexity", *GENERATED),
    "preference": ("accuracy", "loss"),
}
"""The metrics that a task's gate can use; the first is the default."""
LOWER_IS_BETTER: tuple[Metric, ...] = ("loss", "perplexity")

MACRO: tuple[Metric, ...] = ("precision", "recall", "f1")
"""The metrics that are averaged over labels."""

LEAST_SUPPORT = 30
"""Test rows that each label needs for a metric averaged over labels: with fewer, one label's rows
decide, and equal models passed in 8 to 11% of trials instead of 5%."""

GROUP_COLUMN = "split_group"
"""The column with the values of `data.split.group_by`, in shards and score tables."""
