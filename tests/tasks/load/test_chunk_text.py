"""Splitting text files into chunks: CSV quotes, JSON arrays, long lines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.contracts.errors import BadData
from tasks.load.chunk_text import array_to_lines, chunk_csv, chunk_lines, chunk_text_files
from tasks.load.chunking import Chunk
from tests.tasks.samples import GOOD_ROWS, assert_refused, json_lines, parametrize_refused

in_a_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)


class TestCsv:
    def chunks(self, tmp_path: Path, data: bytes) -> list[Chunk]:
        file = tmp_path / "a.csv"
        file.write_bytes(data)
        return list(chunk_csv(file, "a.csv", 10_000, "utf-8"))

    def test_a_line_break_in_quotes_does_not_end_a_record(self, tmp_path):
        rows = [
            [f"first\nsecond {number}", 'a "quoted" word, and a comma', str(number)]
            for number in range(30_000)
        ]
        out = io.StringIO()
        csv.writer(out).writerows([["text", "more", "label"], *rows])
        data = out.getvalue().encode()
        chunks = self.chunks(tmp_path, data)
        assert len(chunks) > 2
        read = []
        for chunk in chunks:
            text = data[chunk.start : chunk.stop].decode()
            read += list(csv.reader(io.StringIO(text, newline="")))
        assert read == rows

    def test_the_header_is_part_of_each_chunk(self, tmp_path):
        one = self.chunks(tmp_path, b"text,label\na,b\n")
        other = self.chunks(tmp_path, b"text,class\na,b\n")
        assert one[0].digest != other[0].digest
        assert one[0].head == (0, 11)

    def test_positions_are_line_numbers_of_the_file(self, tmp_path):
        chunks = self.chunks(tmp_path, b'"te\nxt",label\na,b\n')
        assert chunks[0].first == 2

    def test_an_unclosed_quote_is_refused_without_reading_the_rest(self, tmp_path):
        with pytest.raises(BadData, match=r"a\.csv:2: .*closing quote"):
            self.chunks(tmp_path, b"text,label\n" + b'"never closed\n' + b"a,b\n" * 10_000)


class TestJsonArrays:
    def lines(self, tmp_path: Path, text: str, limit: int = 1_000_000) -> list:
        file = tmp_path / "a.json"
        file.write_text(text)
        out = array_to_lines(file, tmp_path / "out.jsonl", "a.json", limit, "utf-8")
        # Not `splitlines`: JSON may hold other line separators, such as U+0085, unescaped.
        return [json.loads(line) for line in out.read_text().split("\n") if line]

    @given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.text() | st.integers(0, 9))))
    @in_a_folder
    @pytest.mark.parametrize("indent", [None, 2])
    def test_elements_become_lines(self, tmp_path, rows, indent):
        # Text beyond ASCII is escaped: a lone surrogate cannot be written.
        rows = json.loads(json.dumps(rows, ensure_ascii=True))
        text = json.dumps(rows, indent=indent)
        if not any("\\ud" in each for each in [text.lower()]):
            assert self.lines(tmp_path, text) == rows

    def test_elements_that_span_blocks(self, tmp_path):
        rows = [{"text": "x" * 700_000, "n": number} for number in range(7)]
        assert self.lines(tmp_path, json.dumps(rows)) == rows

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[{"a": 1}, {"a": 2}', "cut off"),
            ('[{"a": 1} {"a": 2}]', "',' is missing"),
            ('[{"a": 1}] extra', "text after its end"),
            ('[{"a": }]', "a.json:1"),
            ('[{"a": NaN}]', "NaN"),
        ],
    )
    def test_a_malformed_array_is_refused(self, tmp_path, text, message):
        with pytest.raises(BadData) as error:
            self.lines(tmp_path, text)
        assert message in str(error.value)

    def test_a_huge_element_is_refused(self, tmp_path):
        with pytest.raises(BadData, match=r"a record of more than 0\.01 MB"):
            self.lines(tmp_path, json.dumps([{"text": "x" * 3_000_000}]), limit=10_000)


class TestLines:
    def test_a_long_line_is_refused_after_reading_no_more_than_the_limit(self, tmp_path):
        file = tmp_path / "a.jsonl"
        with open(file, "wb") as out:
            out.write(b'{"text": "short"}\n')
            out.truncate(5 << 30)  # a sparse file of 5 GB without a line break
        with pytest.raises(BadData, match=r"a\.jsonl:2: found a record of more than 1 MB"):
            list(chunk_lines(file, "a.jsonl", 1_000_000, "utf-8"))


class TestTextFiles:
    def test_an_added_file_changes_one_chunk(self):
        files = [("a", f"{number:064x}", 3_000) for number in range(2_000)]
        old = {chunk.digest for chunk in chunk_text_files(files)}
        new = [
            chunk.digest
            for chunk in chunk_text_files(sorted([*files, ("a", f"{77:064x}0", 3_000)]))
        ]
        assert len(set(new) - old) == 1


REFUSED = [
    (
        "a huge line",
        {"a.jsonl": json_lines(*GOOD_ROWS) + b'{"text": "' + b"x" * 20_000},
        {"max_record_mb": 0.01},
        "a.jsonl:3: found a record of more than 0.01 MB",
    ),
    *(
        (
            f"lines of {name} that end with CR",
            {name: content.replace(b"\n", b"\r")},
            {},
            f"{name}: found lines that end with a carriage return",
        )
        for name, content in {
            "a.csv": b"text,label\na,x\nb,y\n",
            "a.jsonl": json_lines(*GOOD_ROWS),
        }.items()
    ),
    (
        "half of a Unicode character in an array",
        {"a.json": b'[{"text": "a", "label": "x"}, {"text": "\\ud800", "label": "y"}]'},
        {},
        "a.json:2: found half of a Unicode character",
    ),
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)
