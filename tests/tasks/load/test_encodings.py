"""Encodings: which are accepted, and what text in another encoding gives."""

from __future__ import annotations

import pytest

from tasks.contracts.errors import BadRecipe
from tasks.load.encodings import check_encoding
from tests.tasks.samples import GOOD_ROWS, assert_refused, json_lines, parametrize_refused


class TestCheckEncoding:
    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le"])
    def test_an_encoding_that_is_not_ascii_compatible_is_refused(self, encoding):
        with pytest.raises(BadRecipe, match=r"data\.encoding"):
            check_encoding(encoding)

    def test_an_unknown_encoding_is_refused(self):
        with pytest.raises(BadRecipe, match="encodings that Python knows"):
            check_encoding("utf-8, klingon")


REFUSED = [
    (
        "binary content",
        {"a.jsonl": json_lines(*GOOD_ROWS) + b"\x00\x01\x02"},
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
        {"a.jsonl": json_lines(*GOOD_ROWS) + '{"text": "é"}'.encode("latin-1")},
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
        {"a.jsonl": json_lines(*GOOD_ROWS)},
        {"encoding": "utf-9"},
        "data.encoding: found 'utf-9'",
    ),
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)
