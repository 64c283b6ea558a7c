"""Reading CSV files: headers, delimiters and malformed rows."""

from __future__ import annotations

import pytest

from tasks.contracts.errors import BadData
from tests.tasks.samples import (
    assert_refused,
    faq_path,
    load_data,
    parametrize_refused,
    run_context,
)


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
