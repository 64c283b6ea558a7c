"""Detecting the format of a source's files."""

from __future__ import annotations

import gzip

from tests.tasks.samples import GOOD_ROWS, assert_refused, json_lines, parametrize_refused

REFUSED = [
    (
        "mixed formats",
        {"a.csv": b"text,label\na,b\n", "b.jsonl": json_lines(*GOOD_ROWS)},
        {},
        "found files of several formats: csv (a.csv), jsonl (b.jsonl)",
    ),
    ("an unknown format", {"a.dat": b"x"}, {}, "a.dat: found a file of unknown format (.dat)"),
    (
        "texts without a setting",
        {"x/a.txt": b"x", "y/b.txt": b"y"},
        {},
        "set data.format to text-folders",
    ),
    (
        "texts without a folder",
        {"a.txt": b"x", "b.txt": b"y"},
        {"format": "text-folders"},
        "a.txt: found a text file outside a label's folder",
    ),
    (
        "a table where text folders are expected",
        {"a.csv": b"text,label\na,x\n"},
        {"format": "text-folders"},
        "a.csv: found a .csv file, but data.format is text-folders; expected one text file per "
        "example. Fix: set data.format to auto",
    ),
    (
        "a compressed file",
        {"a.jsonl.gz": gzip.compress(json_lines(*GOOD_ROWS))},
        {},
        "a.jsonl.gz: found a compressed file (.gz)",
    ),
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)
