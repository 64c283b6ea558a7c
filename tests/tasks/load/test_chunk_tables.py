"""Splitting Parquet and Arrow files into chunks: only columns that are read count."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.load.dataset import read_split
from tasks.load.splits import TEST
from tests.tasks.samples import load_data, run_context, some_rows


class TestParquet:
    def test_a_column_with_a_dot_in_its_name_is_part_of_the_chunk(self, tmp_path):
        rows = [{**row, "meta.source": "a"} for row in some_rows(100)]
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        first = load_data(path, run_context(tmp_path), keep_columns=["meta.source"])
        pq.write_table(pa.Table.from_pylist([{**row, "meta.source": "b"} for row in rows]), path)
        second = load_data(path, run_context(tmp_path), keep_columns=["meta.source"])
        assert second.artifact.digest != first.artifact.digest
        [table] = read_split(run_context(tmp_path), second.artifact, TEST)
        assert set(table["meta.source"].to_pylist()) == {"b"}

    def test_columns_that_are_not_read_are_not_part_of_the_chunk(self, tmp_path):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist(some_rows(100)), path)
        load_data(path, run_context(tmp_path))
        more = [{**row, "score": number} for number, row in enumerate(some_rows(100))]
        pq.write_table(pa.Table.from_pylist(more), path)
        assert load_data(path, run_context(tmp_path)).new_shards == 0
