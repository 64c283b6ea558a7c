"""Columns, keys and means of a score table, which has one row per example."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def values_of(table: pa.Table, name: str) -> np.ndarray:
    """A column as an array, shape (n,); strings as objects, and `(none)` for nulls among them."""
    column = table.column(name)
    if not is_text(column.type):
        return column.to_numpy()
    return np.array(
        ["(none)" if value is None else value for value in column.to_pylist()], dtype=object
    )


def keys_of(table: pa.Table) -> np.ndarray:
    """The inputs' hashes, uint64, shape (n, 2)."""
    return np.stack([values_of(table, "hash_hi"), values_of(table, "hash_lo")], axis=1)


def sorted_rows(table: pa.Table) -> pa.Table:
    """The table with its rows in the order of their hashes."""
    return table.sort_by([("hash_hi", "ascending"), ("hash_lo", "ascending")])


def mean(values: np.ndarray) -> float:
    """The mean; NaN or infinite if a value is."""
    with np.errstate(all="ignore"):
        return float(values.mean())


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of strings, or of a dictionary of strings."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """The weighted mean; NaN if the weights add up to 0."""
    with np.errstate(all="ignore"):
        return float((values * weights).sum() / weights.sum())
