"""Reading JSON lines, CSV files and text folders: malformed rows and headers."""

from __future__ import annotations

import json

import pytest

from tasks.contracts.errors import BadData
from tests.tasks.samples import (
    GOOD_ROWS,
    assert_refused,
    faq_path,
    json_lines,
    load_data,
    parametrize_refused,
    run_context,
    some_rows,
)


class TestIntegers:
    @pytest.mark.parametrize("suffix", ["jsonl", "json"])
    def test_beyond_64_bits_are_labels_of_their_own(self, tmp_path, suffix):
        labels = (18446744073709551617, 18446744073709551715, 3)
        rows = [{**row, "label": labels[n % 3]} for n, row in enumerate(some_rows(90))]
        content = json_lines(*rows) if suffix == "jsonl" else json.dumps(rows).encode()
        (tmp_path / f"a.{suffix}").write_bytes(content)
        loaded = load_data(tmp_path / f"a.{suffix}", run_context(tmp_path))
        assert loaded.labels == tuple(sorted(map(str, labels)))

    def test_beyond_64_bits_in_other_columns_are_no_concern(self, tmp_path):
        rows = [{**row, "id": 10**30 + n} for n, row in enumerate(some_rows(90))]
        (tmp_path / "a.json").write_text(json.dumps(rows))
        assert sum(load_data(tmp_path / "a.json", run_context(tmp_path)).rows.values()) == 90


class TestHeaders:
    def test_missing_columns_are_reported_for_the_header(self, tmp_path):
        with pytest.raises(BadData, match=r"faq-en\.csv:1: .*{prompt: q, completion: a}"):
            load_data(faq_path("faq-en.csv"), run_context(tmp_path), "instruction")
        path = tmp_path / "a.csv"
        path.write_text("prompt;completion\na;b\n")
        with pytest.raises(BadData, match=r"set data\.delimiter to ';'"):
            load_data(path, run_context(tmp_path), "completion")


REFUSED = [
    (
        "a missing column in CSV",
        {"a.csv": b"text,class\na,b\n"},
        {"label": "klass"},
        "a.csv:1: found no column 'klass' (columns: 'text', 'class')",
    ),
    (
        "malformed JSON",
        {"a.jsonl": json_lines(*GOOD_ROWS) + b'{"text": "a", \n'},
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
        "a JSON line that is not an object",
        {"a.jsonl": json_lines(*GOOD_ROWS, "text")},
        {},
        "a.jsonl:3: found a string, not an object",
    ),
    ("an array of texts", {"a.json": b'["a", "b"]'}, {}, "a.json:1: found a string, not an object"),
    (
        "a pretty-printed row",
        {"a.json": json.dumps(GOOD_ROWS[0], indent=2).encode()},
        {},
        "a.json:1: found malformed JSON",
    ),
    (
        "NaN in a column that is not read",
        {"a.jsonl": json_lines(*GOOD_ROWS) + b'{"text": "g", "label": "x", "score": NaN}\n'},
        {},
        "a.jsonl:3: found NaN, which JSON does not have, at character",
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
        "a.csv:1: found two columns named 'text'",
    ),
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)
