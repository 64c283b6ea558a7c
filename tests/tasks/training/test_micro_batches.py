"""Steps and micro-batches of language models."""

import math
from itertools import chain

import numpy as np
import pytest

from tasks.training.language_batches import Example, Part
from tasks.training.micro_batches import Steps, fill, in_order


class TestSteps:
    lengths = np.random.default_rng(0).integers(5, 200, size=203)

    def steps(self, epoch, rank=0, world_size=1, seed=1):
        sampler = Steps(self.lengths, 8, seed, rank, world_size)
        sampler.batch_sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler) == 26
        return list(sampler)

    def test_contain_every_example_once(self):
        assert sorted(chain(*self.steps(0))) == list(range(203))
        assert len(self.steps(1)[-1]) == 3

    def test_depend_on_seed_and_epoch_only(self):
        assert self.steps(1) == self.steps(1)
        assert self.steps(1) != self.steps(2)
        assert self.steps(1) != self.steps(1, seed=2)

    def test_several_processes_take_the_same_steps_together(self):
        shares = [self.steps(1, rank, 3) for rank in range(3)]
        together = [sorted(chain(*step)) for step in zip(*shares, strict=True)]
        assert together == [sorted(step) for step in self.steps(1)]
        loads = np.array(
            [[self.lengths[part].sum() for part in step] for step in zip(*shares, strict=True)]
        )
        assert np.ptp(loads[:-1], axis=1).mean() < 0.15 * loads[:-1].sum(axis=1).mean()

    def test_start_with_the_longest_example(self):
        assert self.lengths[self.steps(0)[0]].max() == self.lengths.max()


class TestMicroBatches:
    lengths = np.random.default_rng(0).integers(2, 90, size=60)

    def examples(self):
        return [
            Example(number, (Part(np.arange(length), np.ones(length, np.uint8)),))
            for number, length in enumerate(self.lengths.tolist())
        ]

    @pytest.mark.parametrize("packing", [True, False])
    def test_contain_every_example_once_within_the_budget(self, packing):
        for parts in (
            [[each.number for each in part] for part in fill(self.examples(), 200, packing)],
            list(in_order(self.lengths, 200, packing)),
        ):
            assert sorted(chain(*parts)) == list(range(60))
            for part in parts:
                lengths = self.lengths[part]
                size = lengths.sum() if packing else lengths.max() * len(part)
                assert size <= 200 or len(part) == 1

    def test_packing_needs_at_most_one_more_than_the_minimum(self):
        least = math.ceil(self.lengths.sum() / 200)
        assert len(fill(self.examples(), 200, True)) <= least + 1

    def test_an_example_above_the_budget_gets_its_own(self):
        parts = fill(self.examples(), 10, True)
        assert all(len(part) == 1 for part in parts if part[0].tokens > 10)
