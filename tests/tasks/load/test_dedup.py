"""Deduplication: what is kept, in one pass or range by range, and leaks between splits."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.load.dataset import read_split
from tasks.load.dedup import deduplicate, find_near_duplicates
from tasks.load.shards import INDEX
from tasks.load.splits import TEST, TRAIN, VALIDATION
from tests.tasks.samples import (
    faq_rows,
    kept_examples,
    kept_rows,
    load_data,
    report_of,
    run_context,
    some_rows,
    write_jsonl,
)

BASE = some_rows(120)


class TestRanges:
    @settings(
        deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(seed=st.integers(0, 10**6), shards=st.integers(1, 5), at_once=st.integers(1, 60))
    def test_small_ranges_give_the_same_result_as_one(self, tmp_path, seed, shards, at_once):
        draw = np.random.default_rng(seed)
        indexes, bands = [], []
        for number in range(shards):
            rows = np.zeros(int(draw.integers(1, 40)), INDEX)
            # Few values give many duplicates, also at both ends of the range.
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
        find_near_duplicates(bands, whole, tmp_path)
        find_near_duplicates(bands, ranges, tmp_path, at_once)
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
        # Not counting labels changes nothing else.
        plain = deduplicate(indexes, tmp_path / "plain.npy", at_once, count_labels=False)
        assert (plain.keep == whole.keep).all()
        assert set(plain.counts) <= {(0, split) for split in (TRAIN, VALIDATION, TEST)}
        assert sum(plain.counts.values()) == sum(whole.counts.values())


class TestDuplicates:
    @settings(
        max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_one_of_several_duplicates_is_kept_in_one_split(self, tmp_path, data):
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
        context = run_context(tmp_path)
        kept = kept_rows(load_data(write_jsonl(tmp_path / "a.jsonl", rows), context), context)
        plain = kept_rows(load_data(write_jsonl(tmp_path / "b.jsonl", BASE), context), context)

        def normal(found):
            return {" ".join(text.lower().split()): value for text, value in found.items()}

        assert len(kept) == len(BASE)
        assert normal(kept) == normal(plain)
        reordered = write_jsonl(tmp_path / "c.jsonl", rows[::-1])
        assert kept_rows(load_data(reordered, context), context) == kept

    def test_a_file_that_occurs_twice_counts_as_duplicates(self, tmp_path):
        rows = some_rows(100)
        write_jsonl(tmp_path / "d" / "a.jsonl", rows)
        write_jsonl(tmp_path / "d" / "b.jsonl", rows)
        context = run_context(tmp_path)
        loaded = load_data(tmp_path / "d", context)
        report = report_of(loaded, context)
        assert (report["rows_read"], report["duplicates_dropped"]) == (200, 100)
        assert sum(loaded.rows.values()) == 100

    def test_several_answers_are_kept_and_copies_are_dropped(self, tmp_path):
        rows = [{"prompt": row["q"], "completion": row["a"]} for row in faq_rows()]
        others = [{**row, "completion": "Ask the municipality."} for row in rows[:40]]
        copies = [{**row, "prompt": f" {row['prompt'].upper()}\n"} for row in rows[:25]]
        context = run_context(tmp_path)
        path = write_jsonl(tmp_path / "a.jsonl", rows + others + copies + others[:3])
        loaded = load_data(path, context, "instruction")
        report = report_of(loaded, context)
        assert sum(loaded.rows.values()) == len(kept_examples(loaded, context)) == 543
        assert report["duplicates_dropped"] == 28
        # Some questions occur twice in the data.
        asked = Counter(row["prompt"].casefold() for row in rows + others)
        several = sum(times > 1 for times in asked.values())
        assert report["several_answers"]["inputs"] == several >= 40
        shown = report["several_answers"]["examples"]
        assert all(len(set(each["answers"])) == len(each["answers"]) > 1 for each in shown)
        assert "Ask the municipality." in {answer for each in shown for answer in each["answers"]}
        assert not any("label" in warning for warning in loaded.warnings)
        for table in read_split(context, loaded.artifact, TRAIN):
            order = [tuple(row.values()) for row in table.select([0, 1, 3]).to_pylist()]
            assert order == sorted(order)


class TestLeaks:
    def test_leaks_between_given_splits_are_dropped_from_the_less_strict_split(self, tmp_path):
        rows = some_rows(90)
        write_jsonl(tmp_path / "d" / "train.jsonl", rows[:70] + rows[80:90])
        write_jsonl(tmp_path / "d" / "valid.jsonl", rows[60:80] + rows[85:90])
        write_jsonl(tmp_path / "d" / "test.jsonl", rows[80:90])
        context = run_context(tmp_path)
        loaded = load_data(tmp_path / "d", context, split={"by": "files"})
        assert loaded.rows == {"train": 60, "validation": 20, "test": 10}
        assert report_of(loaded, context)["leaks_dropped"] == {
            "train": 20,
            "validation": 5,
            "test": 0,
        }
        assert any("25 examples were dropped" in warning for warning in loaded.warnings)
