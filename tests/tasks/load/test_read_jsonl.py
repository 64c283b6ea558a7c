"""Reading JSON lines and arrays: malformed rows, and integers of any size."""

from __future__ import annotations

import json

import pytest

from tests.tasks.samples import (
    GOOD_ROWS,
    assert_refused,
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


REFUSED = [
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
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)
