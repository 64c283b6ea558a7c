"""Examples and batches of language models."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.errors import BadData
from tasks.training.language_batches import Example, Part, gather_tokens, make_batch


class TestExamples:
    def test_with_equal_prompts_are_all_kept_in_one_order(self, lm_data, tmp_path):
        found = []
        for number, places in enumerate((np.arange(40), np.arange(40)[::-1])):
            data = lm_data(places, cuts=[11])
            part = gather_tokens(
                data["shards"], data["keep_file"], "train", tmp_path / str(number), pairs=False
            )
            found.append([each.parts[0].ids.tolist() for each in part])
            assert part.lengths.tolist() == [len(ids) for ids in found[-1]]
        assert len(found[0]) == 32
        assert found[0] == found[1]

    def test_without_target_tokens_are_left_out(self, lm_data, tmp_path):
        data = lm_data()
        file = data["shards"][0].tokens
        table = pq.read_table(file)
        silent = [[0] * len(marks) for marks in table.column("loss_mask").to_pylist()]
        column = pa.array(silent, pa.list_(pa.uint8()))
        pq.write_table(table.set_column(5, "loss_mask", column), file)
        with pytest.raises(BadData, match="no examples with target tokens"):
            gather_tokens(data["shards"], data["keep_file"], "train", tmp_path / "t", pairs=False)

    def test_pairs_stay_together_across_batches_of_the_file(self, lm_data, tmp_path, monkeypatch):
        monkeypatch.setattr("tasks.training.language_batches.ROWS_PER_READ", 3)
        data = lm_data(pairs=True)
        found = gather_tokens(
            data["shards"], data["keep_file"], "train", tmp_path / "t", pairs=True
        )
        assert len(found) == 32
        starts = [[part.ids[:3].tolist() for part in each.parts] for each in found]
        assert all(one == other for one, other in starts)

    def test_that_belong_to_other_data_are_refused(self, lm_data, tmp_path):
        one, two = lm_data(range(40)), lm_data(range(9))
        mixed = [two["shards"][0].model_copy(update={"tokens": one["shards"][0].tokens})]
        with pytest.raises(BadData, match="row 39 of 9"):
            gather_tokens(mixed, two["keep_file"], "train", tmp_path / "t", pairs=False)


class TestBatch:
    @pytest.mark.parametrize("packing", [True, False])
    def test_names_the_positions_before_target_tokens(self, packing):
        parts = [
            Part(np.array([5, 6, 7, 8]), np.array([0, 0, 1, 1], np.uint8)),
            Part(np.array([3, 4]), np.array([0, 1], np.uint8)),
        ]
        examples = [Example(number, (part,)) for number, part in enumerate(parts)]
        batch = make_batch(examples, packing, "cpu")
        flat = batch.inputs["input_ids"].flatten()
        assert flat[batch.target_positions].tolist() == [6, 7, 3]
        assert batch.targets.tolist() == [7, 8, 4]
        assert batch.sequence_ids.tolist() == [0, 0, 1]
        assert batch.tokens == 6
