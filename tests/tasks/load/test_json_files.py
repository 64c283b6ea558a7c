"""A JSON file with its rows inside an object is refused with what to write instead."""

from __future__ import annotations

import json

import pytest

from tasks.contracts.errors import BadData
from tasks.load.json_files import refuse_wrapped_rows
from tests.tasks.samples import assert_refused, json_lines, some_rows

WRAPPED = {"version": 1, "data": some_rows(3)}
MESSAGE = (
    "data.json: found one JSON object with the keys 'version', 'data'; its rows are inside 'data'; "
    "expected one JSON object per line, or an array of objects. Fix: write only the list in 'data'"
)


class TestRefuseWrappedRows:
    @pytest.mark.parametrize("indent", [None, 1])
    def test_an_object_around_the_rows_is_refused(self, tmp_path, indent):
        text = json.dumps(WRAPPED, indent=indent).encode()
        assert_refused(tmp_path, {"data.json": text}, {}, MESSAGE)

    @pytest.mark.parametrize(
        "content",
        [
            json_lines(*some_rows(3)),
            json.dumps(some_rows(3)).encode(),
            json_lines({"messages": [{"role": "user", "content": "a"}]}),
            json_lines({"other": 1}),
            b"{broken",
            b"",
        ],
        ids=["lines", "array", "one chat", "no rows inside", "malformed", "empty"],
    )
    def test_everything_else_is_left_to_the_reader(self, tmp_path, content):
        (tmp_path / "a.json").write_bytes(content)
        refuse_wrapped_rows(tmp_path / "a.json", "a.json", ("text", "label", "messages"))

    def test_the_column_decides_whether_an_object_is_a_row(self, tmp_path):
        (tmp_path / "a.json").write_bytes(json_lines({"turns": [{"role": "user"}]}))
        refuse_wrapped_rows(tmp_path / "a.json", "a.json", ("turns",))
        with pytest.raises(BadData):
            refuse_wrapped_rows(tmp_path / "a.json", "a.json", ("messages",))
