"""The load step: its key, its result, and data that cannot be used as a whole."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.errors import EmptyValue
from tasks.contracts.recipe_data import DataRecipe
from tasks.load.dataset import read_split
from tasks.load.splits import TEST, TRAIN
from tasks.load.step import LoadInputs, load
from tasks.storage.sources import resolve
from tasks.storage.store import open_store
from tests.tasks.samples import (
    GOOD_ROWS,
    assert_refused,
    chat,
    faq_rows,
    json_lines,
    kept_examples,
    kept_rows,
    load_data,
    parametrize_refused,
    report_of,
    run_context,
    some_rows,
    write_csv,
    write_jsonl,
    write_texts,
)


class TestKey:
    def test_a_moved_or_renamed_file_has_the_same_key(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", some_rows(300))
        first = load_data(path, run_context(tmp_path))
        (tmp_path / "other").mkdir()
        moved = path.rename(tmp_path / "other" / "b.jsonl")
        again = load_data(moved, run_context(tmp_path))
        assert again.provenance == first.provenance

    def test_a_text_file_renamed_in_its_folder_has_the_same_key(self, tmp_path):
        rows = some_rows(60)
        write_texts(tmp_path / "a", rows)
        write_texts(tmp_path / "b", rows, "renamed-{}.txt")

        def key(folder: str) -> str:
            context = run_context(tmp_path)
            return load_data(tmp_path / folder, context, format="text-folders").key

        assert key("b") == key("a")
        os.rename(tmp_path / "b" / "tech", tmp_path / "b" / "gadgets")
        assert key("b") != key("a")

    def test_a_file_name_that_decides_a_split_is_part_of_the_key(self, tmp_path):
        path = write_jsonl(tmp_path / "train.jsonl", some_rows(50))
        source = resolve(str(path), "data")
        data = DataRecipe(uri=str(path), split={"by": "files"})
        key = load.key(LoadInputs(data=data, source=source))
        renamed = resolve(str(path.rename(tmp_path / "test.jsonl")), "data")
        assert load.key(LoadInputs(data=data, source=renamed)) != key

    def test_the_task_is_part_of_the_key(self, tmp_path):
        rows = [{"prompt": row["q"], "completion": row["a"]} for row in faq_rows()]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        context = run_context(tmp_path)
        chat, plain = (load_data(path, context, task) for task in ("instruction", "completion"))
        assert plain.new_shards == plain.shards
        assert {*map(type, map(json.loads, kept_examples(plain, context)))} == {dict}
        assert not set(kept_examples(plain, context)) & set(kept_examples(chat, context))


class TestIdentity:
    """The artifact depends on the data, not on their location or order."""

    def test_file_names_and_order_do_not_change_the_artifact(self, tmp_path):
        rows = some_rows(300)
        write_jsonl(tmp_path / "1" / "a.jsonl", rows[:100])
        write_jsonl(tmp_path / "1" / "b.jsonl", rows[100:])
        write_jsonl(tmp_path / "2" / "y.jsonl", rows[:100])
        write_jsonl(tmp_path / "2" / "x.jsonl", rows[100:])
        one = load_data(tmp_path / "1", run_context(tmp_path / "store 1"))
        two = load_data(tmp_path / "2", run_context(tmp_path / "store 2"))
        assert one.artifact.digest == two.artifact.digest
        assert one.test_digest == two.test_digest

    def test_the_test_digest_changes_with_the_test_examples(self, tmp_path):
        rows = some_rows(300)
        first = load_data(write_jsonl(tmp_path / "a.jsonl", rows), run_context(tmp_path))
        shuffled = load_data(write_jsonl(tmp_path / "a.jsonl", rows[::-1]), run_context(tmp_path))
        assert shuffled.test_digest == first.test_digest
        kept = kept_rows(first, run_context(tmp_path))
        trained = next(row for row in rows if kept[row["text"]][1] == TRAIN)
        tested = next(row for row in rows if kept[row["text"]][1] == TEST)

        def without(row):
            return [each for each in rows if each != row]

        path = write_jsonl(tmp_path / "a.jsonl", without(trained))
        assert load_data(path, run_context(tmp_path)).test_digest == first.test_digest
        path = write_jsonl(tmp_path / "a.jsonl", without(tested))
        assert load_data(path, run_context(tmp_path)).test_digest != first.test_digest
        relabelled = [*without(tested), {**tested, "label": "other"}]
        path = write_jsonl(tmp_path / "a.jsonl", relabelled)
        assert load_data(path, run_context(tmp_path)).test_digest != first.test_digest

    def test_seen_holds_the_inputs_of_train_and_validation(self, tmp_path):
        context = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", some_rows(300)), context)
        seen = np.load(open_store(context.store).file(loaded.artifact, "seen.npy"))
        assert seen.dtype == np.uint64
        assert seen.shape == (loaded.rows["train"] + loaded.rows["validation"], 2)
        hashes = [tuple(pair) for pair in seen.tolist()]
        assert hashes == sorted(set(hashes))
        for table in read_split(context, loaded.artifact, TEST):
            test = zip(table["hash_hi"].to_pylist(), table["hash_lo"].to_pylist(), strict=True)
            assert not set(test) & set(hashes)


REFUSED = [
    (
        "a kept column that no row has",
        {"a.jsonl": json_lines(*GOOD_ROWS)},
        {"keep_columns": ["lable"]},
        "found no column 'lable' (columns: 'text', 'label'); expected the column that "
        "data.keep_columns names. Fix: set data.keep_columns to 'label'",
    ),
    (
        "an unknown label",
        {"a.jsonl": json_lines(*GOOD_ROWS, {"text": "g", "label": "spotrs"})},
        {"labels": ["x", "y", "sports"]},
        "a.jsonl:3: found the label 'spotrs' (1 rows); expected one of data.labels: x, y, sports. "
        "Fix: correct it to 'sports', or add it to data.labels",
    ),
    (
        "one label",
        {"a.jsonl": json_lines({"text": "a", "label": 1}, {"text": "b", "label": 1})},
        {},
        "data.label: found only one label, '1'",
    ),
    (
        "decimal numbers as labels",
        {"a.jsonl": json_lines(*GOOD_ROWS, {"text": "g", "label": 0.5})},
        {},
        "a.jsonl:3: found the label '0.5', a decimal number like 1 of 3 labels; expected classes",
    ),
    (
        "decimal numbers as labels of a CSV",
        {"a.csv": b"text,label\na b,-0.25\nc d,3.5\ne f,1\n"},
        {"labels": ["3.5", "1"]},
        "a.csv:2: found the label '-0.25'",
    ),
    (
        "conflicting labels that are to be refused",
        {"a.jsonl": json_lines(*GOOD_ROWS, {"text": "A  b c", "label": "y"})},
        {"conflicts": "refuse"},
        "data.conflicts: found 1 text with more than one label, such as",
    ),
    (
        "free text as label",
        {"a.jsonl": json_lines(*({"text": f"a {n}", "label": f"b {n}"} for n in range(80)))},
        {},
        "data.label: found 80 different labels in 80 rows",
    ),
    (
        "all in one split",
        {"a.jsonl": json_lines(*({**row, "part": "train"} for row in GOOD_ROWS))},
        {"split": {"by": "column", "column": "part"}},
        "data.split.part: found no rows for validation and test (train 2, validation 0, test 0, "
        "after deduplication)",
    ),
    (
        "too little for three splits",
        {"a.jsonl": json_lines(*GOOD_ROWS)},
        {},
        "add data, or raise data.split.test and data.split.validation",
    ),
    (
        "a group column that is not there",
        {"a.jsonl": json_lines(*GOOD_ROWS)},
        {"split": {"group_by": "author"}},
        "found no column 'author'",
    ),
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)


class TestGroups:
    def rows(self, per_author):
        return [{**row, "author": f"a{n // per_author}"} for n, row in enumerate(some_rows(90))]

    def test_that_nobody_named_are_warned_about(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", self.rows(3))
        loaded = load_data(path, run_context(tmp_path))
        [warning] = [each for each in loaded.warnings if "author" in each]
        assert "'author' has at most 30 values in 90 rows" in warning
        assert "set data.split.group_by to author" in warning

    def test_are_not_warned_about_if_named_or_of_single_rows(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", self.rows(3))
        named = load_data(path, run_context(tmp_path), split={"group_by": "author"})
        path = write_jsonl(tmp_path / "b.jsonl", self.rows(1))
        single = load_data(path, run_context(tmp_path))
        assert not [each for each in (*named.warnings, *single.warnings) if "author" in each]

    def test_stay_with_the_test_rows(self, tmp_path):
        context = run_context(tmp_path)
        path = write_jsonl(tmp_path / "a.jsonl", self.rows(3))
        loaded = load_data(path, context, split={"group_by": "author"})
        (test,) = read_split(context, loaded.artifact, TEST)
        groups = test["split_group"].to_pylist()
        assert len(set(groups)) < len(groups)
        assert set(groups) <= {f"a{n}" for n in range(30)}


class TestLabels:
    def test_other_spellings_are_separate_classes_with_a_warning(self, tmp_path):
        rows = some_rows(60)
        shouted = [{"text": f"{row['text']} 2", "label": row["label"].upper()} for row in rows[:20]]
        path = write_jsonl(tmp_path / "a.jsonl", rows + shouted)
        loaded = load_data(path, run_context(tmp_path))
        assert "SPORTS" in loaded.labels and "sports" in loaded.labels
        [warning] = [each for each in loaded.warnings if "'SPORTS'" in each]
        assert "'sports'" in warning and "differ only in spelling" in warning
        assert "data.normalize_labels" in warning

    def test_can_be_normalized(self, tmp_path):
        rows = some_rows(60)
        shouted = [{"text": f"{row['text']} 2", "label": row["label"].upper()} for row in rows[:20]]
        path = write_jsonl(tmp_path / "a.jsonl", rows + shouted)
        context = run_context(tmp_path)
        plain = load_data(write_jsonl(tmp_path / "b.jsonl", rows), context)
        merged = load_data(path, context, normalize_labels=True)
        assert merged.labels == plain.labels
        assert not [each for each in merged.warnings if "spelling" in each]

    def test_can_be_renamed_and_merged(self, tmp_path):
        rows = [{**row, "label": n % 3} for n, row in enumerate(some_rows(90))]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        loaded = load_data(
            path, run_context(tmp_path), label_map={"0": "bad", "1": "bad", "2": "good"}
        )
        assert loaded.labels == ("bad", "good")

    def test_decimal_numbers_are_classes_if_they_are_listed(self, tmp_path):
        rows = [{**row, "label": (3.5, 4.0)[n % 2]} for n, row in enumerate(some_rows(60))]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        assert load_data(path, run_context(tmp_path), labels=["3.5", "4"]).labels == ("3.5", "4")


class TestConflicts:
    @pytest.mark.parametrize("policy", ["drop", "keep-train"])
    def test_a_text_with_two_labels_is_in_no_test(self, tmp_path, policy):
        rows = some_rows(200)
        second = [{**row, "label": "other"} for row in rows]
        path = write_jsonl(tmp_path / "a.jsonl", rows[:150] + second + some_rows(100, start=300))
        context = run_context(tmp_path)
        loaded = load_data(path, context, conflicts=policy)
        twice = {row["text"] for row in rows[:150]}
        splits = {split for text, (_, split) in kept_rows(loaded, context).items() if text in twice}
        assert splits == (set() if policy == "drop" else {TRAIN})
        report = report_of(loaded, context)["conflicts"]
        assert report["inputs"] == 150
        assert report["rows_dropped"]["test"] > 0
        assert bool(report["rows_dropped"]["train"]) == (policy == "drop")
        assert [each for each in loaded.warnings if "150 texts with more than one label" in each]

    def test_the_policy_is_part_of_the_key(self, tmp_path):
        source = resolve(str(write_jsonl(tmp_path / "a.jsonl", GOOD_ROWS)), "data")
        keys = {
            load.key(LoadInputs(data=DataRecipe(uri="a", conflicts=policy), source=source))
            for policy in ("drop", "keep-train", "refuse")
        }
        assert len(keys) == 3


class TestEmptyRows:
    ROWS = (*some_rows(120), {"text": "", "label": "x"}, {"text": "a", "label": None})

    @pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
    def test_are_refused_all_at_once(self, tmp_path, suffix):
        rows = [{"text": "", "label": "x"}, *self.ROWS, {"text": " ", "label": "y"}]
        path = write_rows(tmp_path / f"a.{suffix}", rows)
        first = 2 if suffix == "csv" else 1
        with pytest.raises(EmptyValue) as error:
            load_data(path, run_context(tmp_path))
        others = ", ".join(f"a.{suffix}:{first + number}" for number in (121, 122, 123))
        assert str(error.value).startswith(
            f"a.{suffix}:{first}: found no text in 'text', and 3 other empty rows: {others};"
        )
        assert "set data.empty to skip" in error.value.fix

    def test_of_several_files_are_counted_together(self, tmp_path):
        for name in "ab":
            write_jsonl(tmp_path / "data" / f"{name}.jsonl", [*some_rows(9), *self.ROWS[-2:]])
        with pytest.raises(EmptyValue, match="and 3 other empty rows"):
            load_data(tmp_path / "data", run_context(tmp_path))

    def test_may_be_skipped_with_a_warning(self, tmp_path):
        context = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", self.ROWS), context, empty="skip")
        plain = load_data(write_jsonl(tmp_path / "b.jsonl", self.ROWS[:-2]), context)
        assert loaded.rows == plain.rows
        assert "2 of 122 rows are empty and were left out (data.empty)" in loaded.warnings
        assert report_of(loaded, context)["empty_skipped"] == 2

    def test_of_conversations_may_be_skipped(self, tmp_path):
        rows = [chat(row["text"], row["label"]) for row in some_rows(60)]
        rows += [chat("a", ""), chat(" ", "b")]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        loaded = load_data(path, run_context(tmp_path), "instruction", empty="skip")
        assert sum(loaded.rows.values()) == 60

    @pytest.mark.parametrize("policy", ["refuse", "skip"])
    def test_alone_are_refused(self, tmp_path, policy):
        path = write_jsonl(tmp_path / "a.jsonl", [{"text": "", "label": "x"}] * 3)
        with pytest.raises(EmptyValue, match="2 other empty rows") as error:
            load_data(path, run_context(tmp_path), empty=policy)
        assert ("data.empty" in error.value.fix) == (policy == "refuse")


def write_rows(path, rows):
    """Write rows in the format of the file's extension."""
    if path.suffix == ".csv":
        return write_csv(path, rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    return write_jsonl(path, rows)
