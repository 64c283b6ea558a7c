"""Ingesting a source: what is read again, and what is reused."""

from __future__ import annotations

import boto3
import pytest

from tasks.contracts.errors import BadData
from tasks.load import chunking, ingest
from tasks.load.dataset import read_split
from tasks.load.splits import TEST
from tasks.storage import sources
from tasks.storage.store import open_store
from tests.tasks.samples import (
    GOOD_ROWS,
    assert_refused,
    chats,
    faq_rows,
    json_lines,
    kept_examples,
    kept_rows,
    load_data,
    parametrize_refused,
    run_context,
    some_rows,
    write_jsonl,
)

ROWS = some_rows(200)


class TestReuse:
    """Chunks are small here, so that a file has many."""

    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch):
        monkeypatch.setattr(chunking, "TARGET_CHUNK_BYTES", 4_000)

    def test_an_unchanged_source_is_not_opened(self, tmp_path, monkeypatch):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(500))
        context = run_context(tmp_path)
        first = load_data(path, context)
        monkeypatch.setattr(ingest, "fetch_file", None)
        again = load_data(path, run_context(tmp_path, repair=("load",)))
        assert again.new_shards == 0
        assert again.artifact == first.artifact
        assert load_data(path, context) == again

    def test_appended_rows_add_a_few_chunks(self, tmp_path):
        rows = some_rows(1100)
        path = write_jsonl(tmp_path / "a.jsonl", rows[:1000])
        first = load_data(path, run_context(tmp_path))
        write_jsonl(path, rows)
        second = load_data(path, run_context(tmp_path))
        assert first.new_shards == first.shards > 20
        assert second.new_shards <= 7 < second.shards
        assert set(kept_rows(first, run_context(tmp_path))) <= set(
            kept_rows(second, run_context(tmp_path))
        )

    def test_a_new_file_does_not_reopen_the_others(self, tmp_path, monkeypatch):
        rows = some_rows(600)
        write_jsonl(tmp_path / "d" / "a.jsonl", rows[:500])
        load_data(tmp_path / "d", run_context(tmp_path))
        write_jsonl(tmp_path / "d" / "b.jsonl", rows[500:])
        opened = []
        fetch = sources.fetch_file
        monkeypatch.setattr(
            ingest, "fetch_file", lambda file, out: opened.append(file.path) or fetch(file, out)
        )
        load_data(tmp_path / "d", run_context(tmp_path))
        assert opened == ["b.jsonl"]

    def test_refresh_reads_everything_again(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(300))
        first = load_data(path, run_context(tmp_path))
        again = load_data(path, run_context(tmp_path, refresh=("load",)))
        assert again.new_shards == first.new_shards == again.shards
        assert again.artifact == first.artifact

    def test_a_lost_shard_is_read_again_and_no_other(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(300))
        first = load_data(path, run_context(tmp_path))
        lost = sorted((tmp_path / "store" / "artifacts" / "shard").iterdir())[1]
        open_store(str(tmp_path / "store")).discard("shard", lost.name)
        again = load_data(path, run_context(tmp_path, repair=("load",)))
        assert again.new_shards == 1
        assert again.artifact == first.artifact
        assert (lost / "manifest.json").is_file()

    def test_shards_read_before_a_failure_are_reused(self, tmp_path):
        rows = some_rows(300)
        bad = [*rows, {"text": "no label"}]
        path = write_jsonl(tmp_path / "a.jsonl", bad)
        with pytest.raises(BadData):
            load_data(path, run_context(tmp_path))
        write_jsonl(path, rows)
        loaded = load_data(path, run_context(tmp_path))
        assert loaded.new_shards <= 2 < loaded.shards

    def test_settings_that_do_not_affect_reading_keep_the_shards(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(300))
        load_data(path, run_context(tmp_path))
        again = load_data(path, run_context(tmp_path), labels=["business", "sports", "tech"])
        assert again.new_shards == 0

    def test_appended_chats_add_a_few_chunks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(chunking, "TARGET_CHUNK_BYTES", 10_000)
        rows = chats(faq_rows())
        context = run_context(tmp_path)
        path = write_jsonl(tmp_path / "a.jsonl", rows[:450])
        first = load_data(path, context, "instruction")
        second = load_data(write_jsonl(path, rows), context, "instruction")
        assert first.new_shards == first.shards > 10
        assert second.new_shards <= 8 < second.shards
        before, after = kept_examples(first, context), kept_examples(second, context)
        assert {example: after[example] for example in before} == before
        third = load_data(path, run_context(tmp_path, repair=("load",)), "instruction")
        assert third.new_shards == 0


class TestRemoteData:
    def test_data_on_s3(self, s3_env, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", ROWS)
        boto3.client("s3").upload_file(str(path), s3_env, "d/a.jsonl")
        context = run_context(tmp_path)
        loaded = load_data(f"s3://{s3_env}/d", context)
        local = load_data(path, run_context(tmp_path / "other"))
        assert loaded.artifact.digest == local.artifact.digest
        assert not any((tmp_path / "store" / "scratch").iterdir())

    def test_a_store_on_s3(self, s3_env, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", ROWS)
        context = run_context(tmp_path).model_copy(update={"store": f"s3://{s3_env}/store"})
        loaded = load_data(path, context)
        local = load_data(path, run_context(tmp_path))
        assert loaded.artifact.digest == local.artifact.digest
        assert load_data(path, context.model_copy(update={"repair": ("load",)})).new_shards == 0
        tables = list(read_split(context, loaded.artifact, TEST))
        assert sum(table.num_rows for table in tables) == loaded.rows["test"]

    def test_text_folders_on_s3(self, s3_env, tmp_path):
        for number, row in enumerate(ROWS[:60]):
            boto3.client("s3").put_object(
                Bucket=s3_env, Key=f"t/{row['label']}/{number}.txt", Body=row["text"].encode()
            )
        context = run_context(tmp_path)
        loaded = load_data(f"s3://{s3_env}/t", context, format="text-folders")
        assert len(kept_rows(loaded, context)) == 60

    def test_data_on_the_hub(self, hub_env, tmp_path):
        data = write_jsonl(tmp_path / "a.jsonl", ROWS).read_bytes()
        hub_env.add_repo("ci/news", {"data/a.jsonl": data, "README.md": "x"}, kind="dataset")
        loaded = load_data("hf://ci/news@main", run_context(tmp_path))
        local = load_data(tmp_path / "a.jsonl", run_context(tmp_path / "other"))
        assert loaded.artifact.digest == local.artifact.digest


REFUSED = [
    ("an empty file", {"a.jsonl": b""}, {}, "a.jsonl: found an empty file"),
    ("no rows", {"a.jsonl": b"\n\n"}, {}, "found no rows"),
    ("a header alone", {"a.csv": b"text,label\n"}, {}, "found no rows"),
    (
        "a huge text",
        {"x/a.txt": b"x" * 20_000, "y/a.txt": b"y"},
        {"max_record_mb": 0.01, "format": "text-folders"},
        "x/a.txt: found a record of more than",
    ),
    (
        "a file name without split",
        {"a.jsonl": json_lines(*GOOD_ROWS)},
        {"split": {"by": "files"}},
        "a.jsonl: found a file name without a split",
    ),
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)
