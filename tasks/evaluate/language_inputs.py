"""From a file of examples to the inputs that a language model is scored on, and to their table."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from tasks.load.json_values import parse_json

_EXAMPLE_COLUMNS = ("hash_hi", "hash_lo", "text", "text_pair", "label", "example")


class Input(NamedTuple):
    """One distinct input with all its known answers.

    Attributes:
        row: Its first row among the examples.
        examples: One for each answer.
    """

    row: int
    examples: list[dict[str, Any]]


def distinct_inputs(examples: pa.Table) -> list[Input]:
    """The distinct inputs, in the order of their first rows.

    Args:
        examples: With `hash_hi`, `hash_lo` and `example` (JSON); rows with equal hashes are one
            input.
    """
    found: dict[tuple[int, int], Input] = {}
    columns = (examples.column(name).to_pylist() for name in ("hash_hi", "hash_lo", "example"))
    for row, (high, low, example) in enumerate(zip(*columns, strict=True)):
        one = found.setdefault((high, low), Input(row, []))
        one.examples.append(parse_json(example))
    return list(found.values())


def with_prompt(example: dict[str, Any]) -> dict[str, Any]:
    """The example with a prompt: a text without one is split at the space nearest its middle."""
    if "text" not in example:
        return example
    text = example["text"]
    middle = len(text) // 2
    spaces = [position for position, sign in enumerate(text) if sign.isspace()]
    cut = min(spaces, key=lambda position: abs(position - middle), default=middle)
    return {"prompt": text[:cut], "completion": text[cut:]}


def kept_tokens(loss_mask: list[int], limit: int) -> slice:
    """The tokens of a sequence to keep, which always include some of the answer.

    Args:
        loss_mask: 1 for target tokens, else 0.
        limit: Maximum number of tokens to keep.
    """
    if len(loss_mask) <= limit or 1 in loss_mask[1:limit]:
        return slice(0, limit)
    first = loss_mask.index(1, 1) if 1 in loss_mask[1:] else 0
    end = min(len(loss_mask), first + max(1, limit // 2))
    return slice(max(0, end - limit), end)


def score_table_of(
    examples: pa.Table, inputs: list[Input], scores: dict[str, pa.Array]
) -> pa.Table:
    """The score table: a row per input, with hashes, scores and the columns to slice by.

    Args:
        examples: The examples.
        inputs: Their distinct inputs, in order.
        scores: Columns with one value per input.
    """
    firsts = examples.take(pa.array([one.row for one in inputs], pa.int64()))
    table = {
        "hash_hi": firsts.column("hash_hi").cast(pa.uint64()),
        "hash_lo": firsts.column("hash_lo").cast(pa.uint64()),
        "label": pa.array([""] * len(inputs), pa.string()),
        **scores,
    }
    for name in examples.column_names:
        if name not in (*_EXAMPLE_COLUMNS, *table):
            table[name] = firsts.column(name).cast(pa.string())
    return pa.table(table)
