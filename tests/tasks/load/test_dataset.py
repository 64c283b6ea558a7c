"""Reading a dataset: its splits, sorted and complete, with their columns."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from tasks.contracts.errors import DamagedArtifact
from tasks.load.dataset import read_split, write_examples
from tasks.load.splits import TEST, TRAIN, VALIDATION
from tests.tasks.samples import (
    FAQ_COLUMNS,
    faq_path,
    faq_rows,
    kept_rows,
    load_data,
    run_context,
    some_rows,
    write_jsonl,
)

ROWS = some_rows(400)


class TestReadSplit:
    def test_examples_are_sorted_and_complete(self, tmp_path):
        context = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", some_rows(900)), context)
        kept = kept_rows(loaded, context)
        for split, name in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test")):
            tables = list(read_split(context, loaded.artifact, split, rows_at_once=40))
            assert len(tables) == -(-loaded.rows[name] // 40)
            rows = [row for table in tables for row in table.to_pylist()]
            hashes = [(row["hash_hi"], row["hash_lo"]) for row in rows]
            assert hashes == sorted(hashes)
            assert {row["text"] for row in rows} == {
                text for text, (_, number) in kept.items() if number == split
            }

    def test_a_damaged_shard_is_an_error(self, tmp_path):
        context = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", some_rows(300)), context)
        for file in (tmp_path / "store").rglob("rows.parquet"):
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        with pytest.raises(DamagedArtifact, match=r"changed file rows\.parquet"):
            list(read_split(context, loaded.artifact, TEST))


class TestWriteExamples:
    def test_text_pairs_and_kept_columns(self, tmp_path):
        rows = [
            {
                "premise": row["text"],
                "claim": f"claim {n}",
                "topic": row["label"],
                "source": f"s{n % 3}",
            }
            for n, row in enumerate(ROWS)
        ]
        context = run_context(tmp_path)
        loaded = load_data(
            write_jsonl(tmp_path / "a.jsonl", rows),
            context,
            text="premise",
            text_pair="claim",
            label="topic",
            keep_columns=["source"],
        )
        table = pq.read_table(
            write_examples(context, loaded.artifact, TEST, tmp_path / "test.parquet")
        )
        assert table.column_names == ["hash_hi", "hash_lo", "text", "text_pair", "label", "source"]
        assert table.num_rows == loaded.rows["test"]
        claims = {row["claim"]: row for row in rows}
        for row in table.to_pylist():
            assert claims[row["text_pair"]]["source"] == row["source"]

    def test_preferences(self, tmp_path):
        rows = [
            {"prompt": row["q"], "chosen": row["a"], "rejected": "I do not know."}
            for row in faq_rows()
        ]
        context = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", rows), context, "preference")
        path = write_examples(context, loaded.artifact, TEST, tmp_path / "test.parquet")
        table = pq.read_table(path)
        assert table.column_names == ["hash_hi", "hash_lo", "text", "example", "label"]
        assert set(table["label"].to_pylist()) == {""}
        for row in table.to_pylist():
            example = json.loads(row["example"])
            assert row["text"] == f"user: {example['prompt'][0]['content']}"
            assert example["rejected"] == [{"role": "assistant", "content": "I do not know."}]

    def test_kept_columns_and_groups(self, tmp_path):
        context = run_context(tmp_path)
        loaded = load_data(
            faq_path("faq-en.jsonl"),
            context,
            "instruction",
            columns=FAQ_COLUMNS,
            keep_columns=["category"],
            split={"group_by": "id"},
        )
        categories = {row["q"]: row["category"] for row in faq_rows()}
        for table in read_split(context, loaded.artifact, TEST):
            for row in table.to_pylist():
                assert row["category"] == categories[row["text"].removeprefix("user: ")]
