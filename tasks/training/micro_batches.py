"""Order examples into optimizer steps, and cut steps into micro-batches by tokens."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from tasks.training.language_batches import Example


class Steps:
    """The examples of each optimizer step, for one process, as a batch sampler.

    The order depends on seed and epoch only, so a resumed epoch continues with the steps that the
    interrupted one had left. All processes together take the same steps as one process alone.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples per step, over all processes.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._epoch = 0

    @property
    def batch_sampler(self) -> Steps:
        """This sampler: the Trainer calls `set_epoch` on `batch_sampler.batch_sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps():
            yield self._share(step)

    def _steps(self) -> list[np.ndarray]:
        draw = np.random.default_rng([self._seed, self._epoch])
        order = draw.permutation(len(self._lengths))
        steps = np.split(order, range(self._batch_size, len(order), self._batch_size))
        if self._epoch == 0 and len(steps) > 1:
            # The longest example first: if it does not fit into memory, training fails at once
            # and not after hours. The last step may be short and stays last.
            longest = max(range(len(steps) - 1), key=lambda n: self._lengths[steps[n]].max())
            steps[0], steps[longest] = steps[longest], steps[0]
        return steps

    def _share(self, step: np.ndarray) -> list[int]:
        """This process's examples: longest first, each to the process with the fewest tokens."""
        if self._world_size == 1:
            return step.tolist()
        loads = [(0, rank) for rank in range(self._world_size)]
        mine = []
        for number in step[np.argsort(-self._lengths[step], kind="stable")].tolist():
            load, rank = heapq.heappop(loads)
            if rank == self._rank:
                mine.append(number)
            heapq.heappush(loads, (load + int(self._lengths[number]), rank))
        return mine


def fill(examples: list[Example], budget: int, packing: bool) -> list[list[Example]]:
    """Cut the examples of a step into micro-batches.

    With packing, by best-fit decreasing, which needs hardly more micro-batches than the minimum.
    With padding, examples of similar length share a micro-batch.

    Args:
        examples: The examples, in any order.
        budget: Tokens per micro-batch, padding included. A longer example gets its own.
        packing: Whether the micro-batches will be packed.
    """
    ordered = sorted(examples, key=lambda example: (-example.widest, example.number))
    if not packing:
        return _padded_batches(ordered, budget)
    ordered.sort(key=lambda example: -example.tokens)
    bins: list[list[Example]] = []
    free: list[int] = []
    for example in ordered:
        need = example.tokens
        fitting = [index for index, room in enumerate(free) if room >= need]
        if fitting:
            best = min(fitting, key=free.__getitem__)
            bins[best].append(example)
            free[best] -= need
        else:
            bins.append([example])
            free.append(budget - need)
    return bins


def in_order(lengths: np.ndarray, budget: int, packing: bool) -> Iterator[list[int]]:
    """Cut all examples of a split into micro-batches, the longest first, deterministically.

    Args:
        lengths: Tokens of each example.
        budget: Tokens per micro-batch, padding included.
        packing: Whether the micro-batches will be packed.
    """
    batch: list[int] = []
    used = 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        # With padding, every example is as wide as the first.
        need = int(lengths[number if packing or not batch else batch[0]])
        if batch and used + need > budget:
            yield batch
            batch, used, need = [], 0, int(lengths[number])
        batch.append(number)
        used += need
    if batch:
        yield batch


def _padded_batches(ordered: list[Example], budget: int) -> list[list[Example]]:
    batches: list[list[Example]] = []
    for example in ordered:
        last = batches[-1] if batches else []
        rows = sum(len(each.parts) for each in [*last, example])
        # The first example of a batch is its widest.
        if last and rows * last[0].widest <= budget:
            last.append(example)
        else:
            batches.append([example])
    return batches
