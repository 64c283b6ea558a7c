"""Stable splits: no example ever moves to another split."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.contracts.recipe_data import SplitRecipe
from tasks.load.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    input_hash,
    normal_form,
    split_by_name,
    split_of,
)
from tests.tasks.samples import (
    faq_rows,
    kept_examples,
    kept_rows,
    load_data,
    run_context,
    some_rows,
    write_jsonl,
)

BASE = some_rows(120)


class TestNormalForm:
    @given(st.text(), st.sampled_from([" ", "\n", "\t  ", "\u3000"]))
    def test_whitespace_and_case_do_not_matter(self, text, space):
        loose = space + text.upper().lower().replace(" ", space + " ") + space
        assert normal_form(loose) == normal_form(text.upper().lower())

    def test_compatibility_characters_are_equal(self):
        assert normal_form("ﬁne ＡＢＣ") == normal_form("fine abc")


class TestInputHash:
    @given(st.text(), st.text(), st.text(), st.text())
    def test_a_pair_differs_from_its_concatenation(self, a, b, c, d):
        same = (a, b) == (c, d)
        valid = [each.encode("utf-8", "ignore").decode() for each in (a, b, c, d)]
        if valid == [a, b, c, d]:
            assert (input_hash(a, b) == input_hash(c, d)) == same

    def test_the_hash_is_pinned(self):
        """Releases store such hashes, so a change would make old releases incomparable."""
        assert input_hash("hello world").hex() == "b925621449205dd23e5a615ab7026500"
        assert split_of(input_hash("hello world"), SplitRecipe()) == TEST


class TestSplitOf:
    def test_shares_are_as_configured(self):
        split = SplitRecipe(test=0.2, validation=0.1)
        drawn = [split_of(b"%d" % number, split) for number in range(20_000)]
        assert abs(drawn.count(TEST) / 20_000 - 0.2) < 0.01
        assert abs(drawn.count(VALIDATION) / 20_000 - 0.1) < 0.01

    @given(st.binary(), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
    def test_a_larger_test_share_only_adds_test_examples(self, identity, share, more):
        if split_of(identity, SplitRecipe(test=share, validation=0.1)) == TEST:
            assert split_of(identity, SplitRecipe(test=share + more, validation=0.1)) == TEST


class TestSplitByName:
    @pytest.mark.parametrize(
        ("path", "split"),
        [
            ("train.jsonl", TRAIN),
            ("data/test-00000-of-00001.parquet", TEST),
            ("validation/data-00000-of-00002.arrow", VALIDATION),
            ("my_dev.csv", VALIDATION),
            ("news.eval.csv", TEST),
            ("train/test.csv", TEST),
            ("contest.csv", 0),
            ("latest.csv", 0),
        ],
    )
    def test_file_names(self, path, split):
        assert split_by_name(path) == split


class TestStability:
    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(seed=st.integers(0, 10**6), files=st.integers(1, 4), more=st.integers(0, 60))
    def test_adding_reordering_and_renaming_never_moves_an_example(
        self, tmp_path, seed, files, more
    ):
        """Any rows may be added, in any order, files and names."""
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
        context = run_context(tmp_path)
        return kept_rows(load_data(folder, context), context)

    def test_group_by_keeps_groups_together(self, tmp_path):
        rows = [{**row, "author": f"a{n % 40}"} for n, row in enumerate(some_rows(400))]
        context = run_context(tmp_path)
        loaded = load_data(
            write_jsonl(tmp_path / "a.jsonl", rows),
            context,
            split={"group_by": "author"},
            keep_columns=["author"],
        )
        kept = kept_rows(loaded, context)
        splits = {}
        for row in rows:
            splits.setdefault(row["author"], set()).add(kept[row["text"]][1])
        assert all(len(each) == 1 for each in splits.values())
        assert min(loaded.rows.values()) > 0

    def test_a_column_decides_the_split(self, tmp_path):
        words = ["train", "Training", "valid", "dev", "val", "validation", "test", "eval"]
        rows = [{**row, "part": words[n % 8]} for n, row in enumerate(some_rows(80))]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        loaded = load_data(path, run_context(tmp_path), split={"by": "column", "column": "part"})
        assert loaded.rows == {"train": 20, "validation": 40, "test": 20}


class TestLanguageStability:
    @settings(
        max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(seed=st.integers(0, 10**6), files=st.integers(1, 3), more=st.integers(0, 60))
    def test_no_example_ever_changes_its_split(self, tmp_path, seed, files, more):
        """Any rows may be added, in any order, files and row formats."""
        draw = random.Random(seed)
        rows = faq_rows()
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
        context = run_context(tmp_path)
        return kept_examples(load_data(folder, context, "instruction"), context)

    def alpaca(self, row) -> dict:
        return {"instruction": row["q"], "input": "", "output": row["a"]}

    def sharegpt(self, row) -> dict:
        messages = (("human", row["q"]), ("gpt", row["a"]))
        return {"conversations": [{"from": who, "value": what} for who, what in messages]}

    def test_answers_to_one_prompt_stay_together(self, tmp_path):
        rows = [
            {"prompt": row["q"], "completion": f"{row['a']} ({n})"}
            for n in range(3)
            for row in faq_rows()[:100]
        ]
        context = run_context(tmp_path)
        loaded = load_data(write_jsonl(tmp_path / "a.jsonl", rows), context, "completion")
        splits: dict[str, set[int]] = {}
        for example, split in kept_examples(loaded, context).items():
            splits.setdefault(json.loads(example)["prompt"], set()).add(split)
        assert len(splits) == 100
        assert all(len(each) == 1 for each in splits.values())
