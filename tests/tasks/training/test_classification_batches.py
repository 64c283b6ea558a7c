"""Examples and batches of classifiers."""

from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from tasks.contracts.errors import BadData
from tasks.training.classification_batches import (
    LengthGroupedSampler,
    LongestFirstSampler,
    PadCollator,
    gather,
)
from tests.tasks.conftest import LABELS


class TestExamples:
    def test_are_in_the_order_of_their_hashes(self, shards, news, tmp_path):
        found = []
        for place, rows in enumerate((news, news[::-1])):
            data = shards([rows[:10], rows[10:]])
            part = gather(
                data["shards"], data["keep_file"], LABELS, "train", tmp_path / f"{place}.arrow"
            )
            found.append([(row["labels"], row["input_ids"].tolist()) for row in part])
        assert found[0] == found[1]

    def test_of_an_empty_split_are_refused(self, shards, news, tmp_path):
        data = shards([news], splits=("train",))
        with pytest.raises(BadData, match="validation split"):
            gather(data["shards"], data["keep_file"], LABELS, "validation", tmp_path / "v.arrow")

    def test_with_an_unknown_label_are_refused(self, shards, news, tmp_path):
        data = shards([news])
        with pytest.raises(BadData, match="label 'tech'"):
            gather(data["shards"], data["keep_file"], LABELS[:2], "train", tmp_path / "t.arrow")

    def test_that_belong_to_other_data_are_refused(self, shards, news, tmp_path):
        one, two = shards([news]), shards([news[:9]])
        mixed = [one["shards"][0].model_copy(update={"tokens": two["shards"][0].tokens})]
        with pytest.raises(BadData, match="9 rows of tokens"):
            gather(mixed, one["keep_file"], LABELS, "train", tmp_path / "t.arrow")


class TestBatches:
    lengths = np.random.default_rng(0).integers(5, 200, size=203)

    def batches(self, epoch, size=8, seed=1):
        sampler = LengthGroupedSampler(self.lengths, size, seed)
        sampler.set_epoch(epoch)
        order = list(sampler)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def test_contain_every_example_once(self):
        assert sorted(chain(*self.batches(0))) == list(range(203))
        assert [len(batch) for batch in self.batches(1)][-1] == 3

    def test_depend_on_seed_and_epoch_only(self):
        assert self.batches(1) == self.batches(1)
        assert self.batches(1) != self.batches(2)
        assert self.batches(1) != self.batches(1, seed=2)

    def test_contain_examples_of_similar_length(self):
        def padding(batches):
            return sum(max(self.lengths[b]) * len(b) - sum(self.lengths[b]) for b in batches)

        at_random = np.split(np.random.default_rng(1).permutation(200), 25)
        assert padding(self.batches(0)[:-1]) < 0.4 * padding(at_random)

    def test_start_with_the_largest(self):
        sums = [self.lengths[batch].sum() for batch in self.batches(0)]
        assert sums[0] == max(sums)

    def test_of_an_evaluation_go_from_long_to_short(self):
        order = self.lengths[list(LongestFirstSampler(self.lengths))]
        assert (np.diff(order) <= 0).all()

    @pytest.mark.parametrize(("side", "first"), [("right", [7, 8, 0]), ("left", [0, 7, 8])])
    def test_are_padded_on_the_tokenizers_side(self, side, first):
        tokenizer = SimpleNamespace(pad_token_id=0, pad_token_type_id=0, padding_side=side)
        rows = [np.array([7, 8]), np.array([7, 8, 9])]
        batch = PadCollator(tokenizer)([{"input_ids": ids, "labels": 1} for ids in rows])
        assert batch["input_ids"][0].tolist() == first
        assert batch["attention_mask"][0].tolist() == [int(token > 0) for token in first]
