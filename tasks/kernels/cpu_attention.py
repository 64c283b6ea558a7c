"""Causal attention within each example of a row, on a processor, in half precision.

torch's own attention there computes bf16 no faster than fp32 and takes a third of a training step,
most of it going back. Here each block of queries of an example is a few matrix products, which the
processor's bf16 units do; the probabilities of a block are never kept, but computed once more on
the way back (as in FlashAttention, arXiv:2205.14135). Each thread computes whole examples, with an
operation's threads to itself: threads that meet after every small product wait longer than they
compute. All is one operation to torch, so that whatever is compiled around it stays in one piece.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, NamedTuple

import torch

# Queries at once, of each head that shares a key: a larger block computes more of what causality
# forbids, a smaller one has smaller products. Short examples share a block, though none sees
# another: many small products cost more than what one of them computes in vain.
_BLOCK = 256
# Where no head shares its key.
_BLOCK_OF_ONE = 384


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
    heads, tokens = query.shape[1:3]
    groups, each = key.shape[1], heads // key.shape[1]
    longest = min(longest, tokens)
    scores = each * min(_block(each), longest) * longest
    threads = torch.get_num_threads()
    at_once = threads if groups * math.ceil(tokens / longest) >= threads else 1
    # Keys and values side by side; of a block, the scores and what is made of them.
    numbers = 2 * key.numel() + at_once * scores * (3 if going_back else 2)
    return numbers * query.element_size()


@torch.library.custom_op("burnish::attend_blockwise", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    out = _shape(query)
    queries, outs = _by_key(query[0], key), _by_key(out[0].transpose(0, 1), key)
    key, value = _scaled(key[0], scale), value[0].contiguous()

    def work(group: int, block: _Block) -> None:
        rows = queries[group, :, block.those].reshape(-1, query.shape[-1])
        chances = _chances(rows, key[group, block.seen], block, window)
        found = torch.mm(chances, value[group, block.seen])
        outs[group, :, block.those] = found.unflatten(0, (len(outs[group]), -1))

    _share_out(work, len(key), _blocks(tuple(ends.tolist()), queries.shape[1], window))
    return out


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
    of_query = _shapes(gradient, query)[0]
    queries, of_queries = _by_key(query[0], key), _by_key(of_query[0], key)
    gradients = _by_key(gradient[0].transpose(0, 1), key)
    key, value = _scaled(key[0], scale), value[0].contiguous()
    of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)

    def work(group: int, block: _Block) -> None:
        rows, back = (
            each[group, :, block.those].reshape(-1, query.shape[-1])
            for each in (queries, gradients)
        )
        keys, where = key[group, block.seen], (group, block.seen)
        chances = _chances(rows, keys, block, window)
        of_chances = torch.mm(back, value[where].t())
        of_scores = torch.ops.aten._softmax_backward_data(of_chances, chances, -1, chances.dtype)
        of_rows = torch.mm(of_scores, keys)
        of_queries[group, :, block.those] = of_rows.unflatten(0, (len(queries[group]), -1))
        of_key[where].addmm_(of_scores.t(), rows)
        of_value[where].addmm_(chances.t(), back)

    _share_out(work, len(key), _blocks(tuple(ends.tolist()), queries.shape[1], window))
    return of_query, of_key.mul_(scale)[None], of_value[None]


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


def _by_key(heads: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(heads, tokens, size) as (groups, heads that share a key, tokens, size)."""
    return heads.unflatten(0, (key.shape[1], -1))


def _scaled(key: torch.Tensor, scale: float) -> torch.Tensor:
    """The scaled keys of each group, side by side: they are fewer than the scores."""
    return torch.mul(key, scale, out=key.new_empty(key.shape))


class _Block(NamedTuple):
    """Queries that are one product.

    Attributes:
        those: Their tokens.
        seen: The tokens that any of them sees; the last are their own.
        hidden: (own tokens, own tokens): minus infinity where a query must not see, else 0.
    """

    those: slice
    seen: slice
    hidden: torch.Tensor


# All layers of a model ask for the same, forward and back.
@functools.lru_cache(2)
def _blocks(ends: tuple[int, ...], each: int, window: int | None) -> list[list[_Block]]:
    """Of each long example, or of short ones that are neighbors: its blocks."""
    most, found = _block(each), []
    for bundle in _bundles(ends, most):
        start, end = bundle[0], bundle[-1]
        count = math.ceil((end - start) / most)
        cuts = [start + (end - start) * number // count for number in range(count + 1)]
        blocks = []
        for first, last in itertools.pairwise(cuts):
            seen = start if window is None else max(start, first - window + 1)
            hidden = _future(last - first)
            if len(bundle) > 2:
                hidden = hidden + _others(bundle)
            blocks.append(_Block(slice(first, last), slice(seen, last), hidden))
        found.append(blocks)
    # What takes longest comes first, so that no thread is left with it at the end.
    found.sort(key=lambda blocks: blocks[-1].those.stop - blocks[0].those.start, reverse=True)
    return found


def _block(each: int) -> int:
    return _BLOCK if each > 1 else _BLOCK_OF_ONE


def _bundles(ends: tuple[int, ...], most: int) -> list[list[int]]:
    """Where examples begin that are computed together, and where the last of them ends."""
    found = [[ends[0]]]
    for start, end in itertools.pairwise(ends):
        if start > found[-1][0] and end - found[-1][0] > most:
            found.append([start])
        found[-1].append(end)
    return found


def _chances(
    rows: torch.Tensor, key: torch.Tensor, block: _Block, window: int | None
) -> torch.Tensor:
    """How much each query looks at each key."""
    own, keys = len(block.hidden), len(key)
    scores = torch.mm(rows, key.t())
    by_head = scores.view(-1, own, keys)
    by_head[:, :, -own:] += block.hidden
    if window is not None and window < keys:
        place = torch.arange(keys)
        by_head.masked_fill_(place[-own:, None] - place >= window, -math.inf)
    # Not `softmax`, which autocast would compute in fp32.
    return torch.ops.aten._softmax(scores, -1, False)


def _future(tokens: int) -> torch.Tensor:
    """(tokens, tokens): minus infinity where a key comes after the query, else 0."""
    return _minus_infinity(torch.ones(tokens, tokens, dtype=torch.bool).triu(1))


def _others(bundle: list[int]) -> torch.Tensor:
    """(tokens, tokens): minus infinity where a key is another example's, else 0."""
    lengths = torch.tensor(bundle).diff()
    owners = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return _minus_infinity(owners[:, None] != owners)


def _minus_infinity(where: torch.Tensor) -> torch.Tensor:
    return torch.zeros(where.shape, dtype=torch.bfloat16).masked_fill_(where, -math.inf)


def _share_out(
    work: Callable[[int, _Block], None], groups: int, bundles: list[list[_Block]]
) -> None:
    """Do all blocks of all groups; those of one bundle and group, which sum their gradients in one
    place, in their order: the result does not depend on the number of threads."""
    turns = itertools.product(bundles, range(groups))

    def run() -> None:
        # Neither autograd nor autocast of the calling thread are known here.
        with torch.no_grad():
            for blocks, group in turns:
                for block in blocks:
                    work(group, block)

    threads = torch.get_num_threads()
    if len(bundles) * groups < threads or threads == 1:
        run()
        return
    for done in [_pool(threads).submit(run) for _ in range(threads)]:
        done.result()


@functools.lru_cache(1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose operations each use one."""
    all_there = Barrier(threads)

    def begin(_: int) -> None:
        # What torch sets a thread to when it first asks must not come after this.
        torch.get_num_threads()
        torch.set_num_threads(1)
        all_there.wait()

    pool = ThreadPoolExecutor(threads, "attention")
    list(pool.map(begin, range(threads)))
    # It was set for threads that begin later, too.
    torch.set_num_threads(threads)
    return pool


# A fork has no threads but its own.
os.register_at_fork(after_in_child=_pool.cache_clear)
