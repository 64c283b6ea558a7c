"""Tokenizing for classification gives the ids of the tokenizer, also for pairs of texts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import RowShard, TokenizeClassificationJob
from tasks.tokenize.classification_program import Encoder, main, tokenize_shard
from tests.tasks.conftest import Notes
from tests.tasks.samples import some_rows

TEXTS = [row["text"] for row in some_rows(40)]
LONG_TEXTS = [" ".join(TEXTS[start : start + 9]) for start in range(len(TEXTS))]


@pytest.fixture
def write_rows(tmp_path):
    """Write texts as the rows of a shard; returns the file."""

    def write_rows(texts, pairs=None):
        columns = {"text": texts, "label": ["x"] * len(texts)}
        if pairs:
            columns["text_pair"] = pairs
        for name in ("hash_hi", "hash_lo"):
            columns[name] = pa.array([1] * len(texts), pa.uint64())
        pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
        return tmp_path / "rows.parquet"

    return write_rows


class TestMain:
    def test_tokenizes_every_shard_and_reports_each(self, minilm, write_rows, tmp_path):
        rows, notes = write_rows(TEXTS), Notes()
        shards = tuple(RowShard(digest=n * 64, rows=rows, out=tmp_path / n) for n in "ab")
        for shard in shards:
            shard.out.mkdir()
        main(TokenizeClassificationJob(tokenizer=minilm, shards=shards, max_length=16), notes)
        assert notes.lines == [
            {"done": 1, "total": 2, "digest": "a" * 64},
            {"done": 2, "total": 2, "digest": "b" * 64},
        ]
        first, second = (pq.read_table(shard.out / "tokens.parquet") for shard in shards)
        assert first.equals(second) and first.num_rows == len(TEXTS)


class TestSingleTexts:
    def test_have_the_types_that_the_tokenizer_gives_to_whoever_serves(
        self, minilm, write_rows, tmp_path
    ):
        tokenize_shard(Encoder(minilm, 32), write_rows(TEXTS), tmp_path)
        expected = AutoTokenizer.from_pretrained(minilm)(TEXTS, truncation=True, max_length=32)
        found = pq.read_table(tmp_path / "tokens.parquet")["token_type_ids"].to_pylist()
        assert found == expected["token_type_ids"]

    def test_have_none_if_the_tokenizer_gives_none(self, minilm, write_rows, tmp_path):
        own = AutoTokenizer.from_pretrained(minilm, model_input_names=["input_ids"])
        own.save_pretrained(tmp_path / "tokenizer")
        tokenize_shard(Encoder(tmp_path / "tokenizer", 32), write_rows(TEXTS), tmp_path)
        assert "token_type_ids" not in pq.read_table(tmp_path / "tokens.parquet").column_names


class TestPairs:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_have_the_ids_and_types_of_the_tokenizer(self, minilm, write_rows, tmp_path, side):
        own = AutoTokenizer.from_pretrained(minilm, truncation_side=side)
        own.save_pretrained(tmp_path / "tokenizer")
        texts, pairs = LONG_TEXTS + TEXTS, TEXTS + LONG_TEXTS
        encoder = Encoder(tmp_path / "tokenizer", 48)
        tokenize_shard(encoder, write_rows(texts, pairs), tmp_path)
        table = pq.read_table(tmp_path / "tokens.parquet")
        expected = own(texts, pairs, truncation=True, max_length=48)
        assert table["input_ids"].to_pylist() == expected["input_ids"]
        assert table["token_type_ids"].to_pylist() == expected["token_type_ids"]
        full = own(texts, pairs)["input_ids"]
        lengths = np.load(tmp_path / "lengths.npy")
        assert lengths[:, 1].tolist() == [len(ids) for ids in full]


class TestEncoder:
    @pytest.mark.parametrize("content", ["{}", "no JSON", None])
    def test_refuses_a_tokenizer_that_cannot_be_loaded(self, tmp_path, content):
        if content:
            (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(BadModel, match="a tokenizer that cannot be loaded"):
            Encoder(tmp_path, 16)
