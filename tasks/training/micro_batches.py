"""Fill optimizer steps with micro-batches of like length."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from tasks.training.language_batches import Example


class Steps:
    """The examples of each optimizer step, for one process, as a batch sampler.

    The order is a function of seed and epoch alone, so that a resumed epoch goes on with the very
    steps that the interrupted one had left. All processes together do what one alone would do.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples of a step, over all processes.
        seed: Of the order.
        rank: Number of this process.
        world_size: How many there are.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._epoch = 0

    @property
    def batch_sampler(self) -> Steps:
        """Itself: the Trainer hands the epoch to the sampler inside a loader's batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0 on, that the next iteration is for."""
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
            # The longest first: what does not fit into memory fails at once, not after hours. The
            # last step may be short, and stays where it is.
            longest = max(range(len(steps) - 1), key=lambda n: self._lengths[steps[n]].max())
            steps[0], steps[longest] = steps[longest], steps[0]
        return steps

    def _share(self, step: np.ndarray) -> list[int]:
        """This process's examples: longest first, each goes to whoever has the fewest tokens."""
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

    Packed: best-fit decreasing, which needs hardly more than the least number of micro-batches.
    Padded: neighbors in length go together.

    Args:
        examples: In any order.
        budget: Tokens of a micro-batch, padding included. An example that is longer comes alone.
        packing: Whether they will be packed.
    """
    ordered = sorted(examples, key=lambda example: (-example.widest, example.number))
    if not packing:
        return _rows_of_like_width(ordered, budget)
    ordered.sort(key=lambda example: -example.tokens)
    bins: list[list[Example]] = []
    free: list[int] = []
    for example in ordered:
        need = example.tokens
        fitting = [place for place, room in enumerate(free) if room >= need]
        if fitting:
            best = min(fitting, key=free.__getitem__)
            bins[best].append(example)
            free[best] -= need
        else:
            bins.append([example])
            free.append(budget - need)
    return bins


def in_order(lengths: np.ndarray, budget: int, packing: bool) -> Iterator[list[int]]:
    """Cut all examples of a split into micro-batches, the longest first; always the same way.

    Args:
        lengths: Tokens of each example.
        budget: Tokens of a micro-batch, padding included.
        packing: Whether they will be packed.
    """
    batch: list[int] = []
    used = 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        # Padded, all are as wide as the first.
        need = int(lengths[number if packing or not batch else batch[0]])
        if batch and used + need > budget:
            yield batch
            batch, used, need = [], 0, int(lengths[number])
        batch.append(number)
        used += need
    if batch:
        yield batch


def _rows_of_like_width(ordered: list[Example], budget: int) -> list[list[Example]]:
    batches: list[list[Example]] = []
    for example in ordered:
        last = batches[-1] if batches else []
        rows = sum(len(each.parts) for each in [*last, example])
        # The first of a batch is its widest.
        if last and rows * last[0].widest <= budget:
            last.append(example)
        else:
            batches.append([example])
    return batches
