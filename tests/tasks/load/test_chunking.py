"""Content-defined chunks: their sizes, and what a change to the data changes."""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.load.chunking import chunk_records

SMALL = 2_000  # expected bytes of a chunk in these tests


lines = st.lists(st.binary(min_size=1, max_size=200).map(lambda b: b.replace(b"\n", b" ") + b"\n"))


def chunks_of(records: list[bytes], target: int = SMALL) -> list[bytes]:
    """Return the content of the chunks of records."""
    stop, stream = 0, []
    for record in records:
        stop += len(record)
        stream.append((record, len(record), stop, 1))
    data = b"".join(records)
    return [data[each.start : each.stop] for each in chunk_records(iter(stream), 0, target=target)]


def long_lines(count: int, salt: str = "") -> list[bytes]:
    """Return distinct lines."""
    return [
        f"{salt}{number} {zlib.crc32(b'%d' % number):x} {'x' * 90}\n".encode()
        for number in range(count)
    ]


class TestChunkRecords:
    @given(lines)
    def test_chunks_concatenate_to_the_input(self, records):
        assert b"".join(chunks_of(records)) == b"".join(records)

    @given(lines, lines)
    def test_appending_changes_only_the_last_chunk(self, before, more):
        old, new = chunks_of(before), chunks_of(before + more)
        assert new[: max(0, len(old) - 1)] == old[:-1]

    @settings(deadline=None)
    @given(st.integers(0, 499), st.binary(min_size=1, max_size=50))
    def test_an_inserted_or_changed_row_changes_few_chunks(self, place, row):
        records = long_lines(500)
        row = row.replace(b"\n", b" ") + b"\n"
        old = set(chunks_of(records))
        inserted = chunks_of([*records[:place], row, *records[place:]])
        changed = chunks_of([*records[:place], row, *records[place + 1 :]])
        # Until the next boundary by content; a boundary by size in between can add one more.
        assert len(set(inserted) - old) <= 3
        assert len(set(changed) - old) <= 3

    def test_chunks_have_about_the_expected_size(self):
        sizes = [len(chunk) for chunk in chunks_of(long_lines(20_000))]
        assert 0.85 * SMALL < np.mean(sizes) < 1.15 * SMALL
        assert max(sizes) < 4 * SMALL + 200
