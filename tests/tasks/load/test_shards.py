"""Shards: rows, index and statistics of one chunk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.contracts.recipe_data import DataRecipe
from tasks.load.chunking import Chunk
from tasks.load.read_settings import ReadJob, ReadSettings
from tasks.load.shards import INDEX, bin_start, length_bin, read_chunk
from tasks.load.splits import SPLIT_NAMES
from tests.tasks.samples import some_rows

ROWS = some_rows(300)


def read_settings(format: str = "jsonl", **settings) -> ReadSettings:
    return ReadSettings.of(DataRecipe(uri="x", **settings), format, "", 0)


def read_lines(tmp_path: Path, data: bytes, settings: ReadSettings) -> Path:
    """Read JSON lines as one chunk; return its shard."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(data)
    chunk = Chunk("", 0, 0, len(data), len(data))
    out = tmp_path / "out"
    [folder] = read_chunk(ReadJob(chunk, settings, "a.jsonl", str(file), str(out)))
    return folder


class TestShard:
    @pytest.fixture
    def shard(self, tmp_path) -> Path:
        data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        return read_lines(tmp_path, data, read_settings())

    def test_rows_keep_text_and_order(self, shard):
        table = pq.read_table(shard / "rows.parquet")
        assert table["text"].to_pylist() == [row["text"] for row in ROWS]
        assert table["label"].to_pylist() == [row["label"] for row in ROWS]

    def test_the_index_is_sorted_and_points_to_the_rows(self, shard):
        index = np.load(shard / "index.npy")
        table = pq.read_table(shard / "rows.parquet")
        assert index.dtype == INDEX
        pairs = list(zip(index["hash_hi"].tolist(), index["hash_lo"].tolist(), strict=True))
        assert pairs == sorted(pairs)
        for name in ("hash_hi", "hash_lo", "raw", "split"):
            assert (table[name].to_numpy()[index["row"]] == index[name]).all()

    def test_statistics(self, shard):
        stats = json.loads((shard / "stats.json").read_bytes())
        table = pq.read_table(shard / "rows.parquet")
        assert stats["rows"] == len(ROWS) == sum(stats["lengths"].values())
        for label, entry in stats["labels"].items():
            mine = table.filter(pa.compute.equal(table["label"], label))
            splits = mine["split"].to_pylist()
            assert entry["splits"] == [splits.count(split) for split in SPLIT_NAMES]
            assert ROWS[entry["at"]]["label"] == label
            assert label not in [row["label"] for row in ROWS[: entry["at"]]]

    def test_equal_chunks_give_equal_bytes(self, shard, tmp_path_factory):
        data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        again = read_lines(tmp_path_factory.mktemp("other"), data, read_settings())
        for file in shard.iterdir():
            assert file.read_bytes() == (again / file.name).read_bytes()

    def test_values_become_strings(self, tmp_path):
        rows = [
            {"text": "a b", "label": 1, "n": 1.5, "flag": True, "list": [1, "x"]},
            {"text": "c d", "label": True, "n": None},
            {"text": "e f", "label": 2.0, "flag": False},
            {"text": "g h", "label": " padded ", "n": "s"},
        ]
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        settings = read_settings(keep_columns=("n", "flag", "list"))
        table = pq.read_table(read_lines(tmp_path, data, settings) / "rows.parquet")
        assert table["label"].to_pylist() == ["1", "true", "2", "padded"]
        assert table["n"].to_pylist() == ["1.5", "", "", "s"]
        assert table["flag"].to_pylist() == ["true", "", "false", ""]
        assert table["list"].to_pylist() == ['[1,"x"]', "", "", ""]

    def test_each_line_may_have_its_own_encoding(self, tmp_path):
        data = (
            '{"text": "£1 a", "label": "x"}\n'.encode()
            + '{"text": "£2 b", "label": "y"}\n'.encode("cp1252")
        )
        folder = read_lines(tmp_path, data, read_settings(encoding="utf-8, cp1252"))
        assert pq.read_table(folder / "rows.parquet")["text"].to_pylist() == ["£1 a", "£2 b"]


class TestLengthBins:
    @given(st.integers(0, 10**7))
    def test_a_bin_starts_at_most_a_sixteenth_below(self, length):
        start = bin_start(length_bin(length))
        assert start <= length < start + max(1, start / 16 + 1)
