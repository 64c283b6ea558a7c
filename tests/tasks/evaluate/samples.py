"""Builders of score tables."""

import numpy as np
import pyarrow as pa

LABELS = ("news", "sport")
JUDGE_KEY = "sk-very-secret-0815"
"""The API key of the LLM judge in tests."""

N = 300
"""Rows of `score_table`, unless it is given another number."""


SHIP_ROWS = [
    {"question": f"Name {n} ships.", "choices": [" the sea", " a harbor", " no"], "label": n % 3}
    for n in range(9)
]


def label_table(right, labels=None, predicted=None, **columns):
    """A classifier's scores, right where `right` is true; the hashes count up from 0."""
    right = np.asarray(right, bool)
    n = len(right)
    labels = np.array(LABELS)[np.arange(n) % 2] if labels is None else np.asarray(labels)
    if predicted is None:
        others = {"news": "sport"}
        predicted = [
            t if r else others.get(t, "news") for t, r in zip(labels.tolist(), right, strict=True)
        ]
    values = {
        "hash_hi": pa.array(np.arange(n, dtype=np.uint64)),
        "hash_lo": pa.array(np.arange(n, dtype=np.uint64) * 7),
        "label": pa.array(labels.tolist(), pa.string()),
        "predicted": pa.array(list(predicted), pa.string()),
        "correct": pa.array(right, pa.bool_()),
        "loss": pa.array(np.where(right, 0.1, 2.0), pa.float64()),
        "length": pa.array(np.arange(n, dtype=np.int32) % 60 + 5),
    }
    return pa.table({**values, **{name: pa.array(c) for name, c in columns.items()}})


def score_table(loss=None, n=N, tokens=None, **columns):
    """A language model's scores; the hashes count up from 0."""
    rows = np.arange(n)
    values = {
        "hash_hi": pa.array(rows.astype(np.uint64)),
        "hash_lo": pa.array((rows * 7).astype(np.uint64)),
        "label": pa.array([""] * n),
        "loss": pa.array(np.full(n, 2.0) if loss is None else np.asarray(loss, float)),
        "tokens": pa.array(rows % 40 + 3 if tokens is None else tokens, pa.int32()),
        "length": pa.array(rows % 60 + 20, pa.int32()),
    }
    return pa.table({**values, **{name: pa.array(c) for name, c in columns.items()}})
