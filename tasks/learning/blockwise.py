"""Causal attention within each example of a row, on a processor, in half precision.

torch's own attention there computes bf16 no faster than fp32 and takes a third of a training step,
most of it going back. Here each block of queries of an example is a few large matrix products,
which the processor's bf16 units do; the probabilities of a block are never kept, but computed once
more on the way back (as in FlashAttention, arXiv:2205.14135). All is one operation to torch, so
that whatever is compiled around it stays in one piece.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch

# Queries at once: a larger block computes more of what causality forbids, a smaller one has smaller
# products. Short examples share a block, though none sees another: many small products cost more
# than what one of them computes in vain.
_BLOCK = 256


def fits(query: torch.Tensor) -> bool:
    """Whether the attention of these queries is faster here."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention of the examples of one row.

    Args:
        query: bf16 (1, heads, tokens, size).
        key, value: The same, with as many heads or a divisor of their number.
        ends: int32: where each example begins, and the end of the last.
        scaling: Of the scores; None for 1 / sqrt(size).
        window: How many tokens each token sees, itself among them; None for all.

    Returns:
        (1, tokens, heads, size).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(query, key, value, ends, scale, window)


def workspace(arguments: tuple[Any, ...], longest: int, going_back: bool) -> int:
    """Bytes that the operation needs for as long as it runs.

    Args:
        arguments: Of the operation.
        longest: Tokens of the longest example.
        going_back: Which of the two it is.
    """
    query, key = arguments[1:3] if going_back else arguments[:2]
    longest = min(longest, query.shape[2])
    scores = query.shape[1] * min(_BLOCK, longest) * longest
    if going_back:
        # Of the queries and of both gradients, with the heads side by side; of keys and values.
        copies, blocks = 3 * query.numel() + 2 * key.numel(), 3 * scores
    else:
        copies, blocks = 2 * query.numel() + 2 * key.numel(), 2 * scores
    return (copies + blocks) * query.element_size()


@torch.library.custom_op("burnish::attend_blockwise", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    rows, key, value = _laid_out(query, key, value, scale)
    each = query.shape[1] // len(key)
    out = torch.empty_like(rows)
    for those, seen, hidden in _blocks(tuple(ends.tolist()), each, window):
        chances = _chances(rows[:, those], key[:, seen], hidden, window)
        out[:, those] = torch.bmm(chances, value[:, seen])
    tokens, size = query.shape[2:]
    return out.view(-1, tokens, each, size).transpose(0, 1).reshape(1, tokens, -1, size)


@torch.library.custom_op("burnish::attend_blockwise_back", mutates_args=())
def _back(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, key, value = _laid_out(query, key, value, scale)
    each = query.shape[1] // len(key)
    gradient = _rows(gradient.transpose(1, 2), len(key))
    of_rows, of_key, of_value = torch.empty_like(rows), torch.zeros_like(key), torch.zeros_like(key)
    for those, seen, hidden in _blocks(tuple(ends.tolist()), each, window):
        chances = _chances(rows[:, those], key[:, seen], hidden, window)
        of_chances = torch.bmm(gradient[:, those], value[:, seen].transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_chances, chances, -1, chances.dtype)
        of_rows[:, those] = torch.bmm(of_scores, key[:, seen])
        of_key[:, seen] += torch.bmm(of_scores.transpose(1, 2), rows[:, those])
        of_value[:, seen] += torch.bmm(chances.transpose(1, 2), gradient[:, those])
    tokens, size = query.shape[2:]
    of_query = of_rows.mul_(scale).view(-1, tokens, each, size).transpose(1, 2)
    return of_query.reshape(query.shape), of_key[None], of_value[None]


@_attend.register_fake
def _shape(query: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


@_back.register_fake
def _shapes(_: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, ...]:
    like = functools.partial(torch.empty_like, memory_format=torch.contiguous_format)
    return tuple(like(each) for each in inputs[:3])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _go_back(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_back(gradient, *ctx.saved_tensors, ctx.scale, ctx.window), None, None, None


_attend.register_autograd(_go_back, setup_context=_keep)


def _laid_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The scaled queries as rows, and keys and values as (groups, tokens, size)."""
    return _rows(query * scale, key.shape[1]), key[0].contiguous(), value[0].contiguous()


def _rows(heads: torch.Tensor, groups: int) -> torch.Tensor:
    """(1, heads, tokens, size) as (groups, tokens x heads of a group, size): the heads that share a
    key lie side by side, so that they are one product."""
    _, count, tokens, size = heads.shape
    grouped = heads.reshape(groups, count // groups, tokens, size)
    return grouped.transpose(1, 2).reshape(groups, -1, size)


class _Block(NamedTuple):
    """Queries that are one product.

    Attributes:
        those: Their rows; those of the heads that share a key lie side by side.
        seen: The keys that any of them sees; the last are of the queries' own tokens.
        hidden: (rows, own tokens): minus infinity where a query must not see, else 0.
    """

    those: slice
    seen: slice
    hidden: torch.Tensor


# All layers of a model ask for the same, forward and back.
@functools.lru_cache(2)
def _blocks(ends: tuple[int, ...], each: int, window: int | None) -> list[_Block]:
    """Long examples in blocks, and short ones that are neighbors in one block together."""
    found = []
    for bundle in _bundles(ends):
        start, end = bundle[0], bundle[-1]
        count = math.ceil((end - start) / _BLOCK)
        cuts = [start + (end - start) * number // count for number in range(count + 1)]
        for first, last in itertools.pairwise(cuts):
            seen = start if window is None else max(start, first - window + 1)
            hidden = _future(each)[: (last - first) * each, : last - first]
            if len(bundle) > 2:
                hidden = hidden + _others(bundle, each)
            found.append(_Block(slice(first * each, last * each), slice(seen, last), hidden))
    return found


def _bundles(ends: tuple[int, ...]) -> list[list[int]]:
    """Where examples begin that are computed together, and where the last of them ends."""
    found = [[ends[0]]]
    for start, end in itertools.pairwise(ends):
        if start > found[-1][0] and end - found[-1][0] > _BLOCK:
            found.append([start])
        found[-1].append(end)
    return found


def _chances(
    rows: torch.Tensor, key: torch.Tensor, hidden: torch.Tensor, window: int | None
) -> torch.Tensor:
    """How much each query looks at each key."""
    own, keys = hidden.shape[1], key.shape[1]
    scores = torch.bmm(rows, key.transpose(1, 2))
    scores[:, :, -own:] += hidden
    if window is not None and window < keys:
        place = torch.arange(keys)
        behind = place[-own:, None] - place >= window
        scores.masked_fill_(behind.repeat_interleave(len(hidden) // own, 0), -math.inf)
    # Not `softmax`, which autocast would compute in fp32.
    return torch.ops.aten._softmax(scores, -1, False)


@functools.lru_cache(8)
def _future(each: int) -> torch.Tensor:
    """(block x each, block): minus infinity where a key comes after the query, else 0."""
    return _minus_infinity(torch.ones(_BLOCK, _BLOCK, dtype=torch.bool).triu(1), each)


def _others(bundle: list[int], each: int) -> torch.Tensor:
    """(tokens x each, tokens): minus infinity where a key is another example's, else 0."""
    lengths = torch.tensor(bundle).diff()
    owners = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return _minus_infinity(owners[:, None] != owners, each)


def _minus_infinity(where: torch.Tensor, each: int) -> torch.Tensor:
    values = torch.zeros(where.shape, dtype=torch.bfloat16).masked_fill_(where, -math.inf)
    return values.repeat_interleave(each, 0)
