"""Columns, keys and means of score tables."""

import numpy as np
import pyarrow as pa

from tasks.evaluate.score_table import keys_of, sorted_rows, values_of, weighted_mean
from tests.tasks.evaluate.samples import score_table


class TestColumns:
    def test_nulls_among_strings_have_a_name(self):
        table = pa.table({"author": pa.array(["ann", None]).dictionary_encode()})
        assert values_of(table, "author").tolist() == ["ann", "(none)"]

    def test_keys_are_pairs_of_hashes(self):
        assert keys_of(score_table(n=3)).tolist() == [[0, 0], [1, 7], [2, 14]]

    def test_rows_are_sorted_by_hash(self):
        table = score_table(n=9)
        assert sorted_rows(table.take([5, 0, 8, 1, 2, 7, 3, 6, 4])) == table


class TestWeightedMean:
    def test_weights_count_as_repetitions(self):
        values, weights = np.array([1.0, 4.0]), np.array([1, 2])
        assert weighted_mean(values, weights) == np.repeat(values, weights).mean()

    def test_without_weight_there_is_no_mean(self):
        assert np.isnan(weighted_mean(np.array([1.0]), np.array([0.0])))
