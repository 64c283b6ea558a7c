"""Cutting files into pieces by content, and reading pieces into shards."""

from __future__ import annotations

import csv
import io
import json
import zlib
from pathlib import Path

import datasketch
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.contracts.errors import BadData, BadRecipe
from tasks.contracts.recipe_data import DataRecipe, SplitRecipe
from tasks.load.chunk_text import array_to_lines, cut_csv, cut_files, cut_lines
from tasks.load.chunking import Chunk, chunk_file
from tasks.load.minhash import (
    BANDS,
    PERMUTATIONS,
    SEED,
    SHINGLE,
    band_keys,
    permutations,
    shingles,
    signatures,
)
from tasks.load.read_settings import Job, Reading
from tasks.load.shards import INDEX, bin_start, length_bin, read_chunk
from tasks.load.splits import (
    SPLIT_NAMES,
    TEST,
    TRAIN,
    VALIDATION,
    input_hash,
    normal_form,
    split_by_name,
    split_of,
)
from tests.tasks.samples import some_rows

SMALL = 2_000  # expected bytes of a piece in these tests

lines = st.lists(st.binary(min_size=1, max_size=200).map(lambda b: b.replace(b"\n", b" ") + b"\n"))
a_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30
)


def pieces_of(records: list[bytes], target: int = SMALL) -> list[bytes]:
    """The content of the pieces that records are cut into."""
    stop, stream = 0, []
    for record in records:
        stop += len(record)
        stream.append((record, len(record), stop, 1))
    data = b"".join(records)
    return [data[each.start : each.stop] for each in chunk_file(iter(stream), 0, target=target)]


def long_lines(count: int, salt: str = "") -> list[bytes]:
    """Lines that no two are alike."""
    return [
        f"{salt}{number} {zlib.crc32(b'%d' % number):x} {'x' * 90}\n".encode()
        for number in range(count)
    ]


class TestCutting:
    @given(lines)
    def test_pieces_together_are_the_input(self, records):
        assert b"".join(pieces_of(records)) == b"".join(records)

    @given(lines, lines)
    def test_appending_changes_only_the_last_piece(self, before, more):
        old, new = pieces_of(before), pieces_of(before + more)
        assert new[: max(0, len(old) - 1)] == old[:-1]

    @settings(deadline=None)
    @given(st.integers(0, 499), st.binary(min_size=1, max_size=50))
    def test_a_row_inserted_or_changed_touches_few_pieces(self, place, row):
        records = long_lines(500)
        row = row.replace(b"\n", b" ") + b"\n"
        old = set(pieces_of(records))
        inserted = pieces_of([*records[:place], row, *records[place:]])
        changed = pieces_of([*records[:place], row, *records[place + 1 :]])
        # Up to the next cut by content: a forced cut in between can add one more.
        assert len(set(inserted) - old) <= 3
        assert len(set(changed) - old) <= 3

    def test_pieces_have_about_the_expected_size(self):
        sizes = [len(piece) for piece in pieces_of(long_lines(20_000))]
        assert 0.85 * SMALL < np.mean(sizes) < 1.15 * SMALL
        assert max(sizes) < 4 * SMALL + 200

    def test_the_order_of_text_files_follows_content_not_names(self):
        files = [("a", f"{number:064x}", 3_000) for number in range(2_000)]
        old = {piece.digest for piece in cut_files(files)}
        new = [piece.digest for piece in cut_files(sorted([*files, ("a", f"{77:064x}0", 3_000)]))]
        assert len(set(new) - old) == 1


class TestCuttingCsv:
    def pieces(self, tmp_path: Path, data: bytes) -> list[Chunk]:
        file = tmp_path / "a.csv"
        file.write_bytes(data)
        return list(cut_csv(file, "a.csv", 10_000, "utf-8"))

    def test_a_line_break_in_quotes_ends_no_record(self, tmp_path):
        rows = [
            [f"first\nsecond {number}", 'a "quoted" word, and a comma', str(number)]
            for number in range(30_000)
        ]
        out = io.StringIO()
        csv.writer(out).writerows([["text", "more", "label"], *rows])
        data = out.getvalue().encode()
        pieces = self.pieces(tmp_path, data)
        assert len(pieces) > 2
        read = []
        for piece in pieces:
            text = data[piece.start : piece.stop].decode()
            read += list(csv.reader(io.StringIO(text, newline="")))
        assert read == rows

    def test_the_header_is_part_of_each_piece(self, tmp_path):
        one = self.pieces(tmp_path, b"text,label\na,b\n")
        other = self.pieces(tmp_path, b"text,class\na,b\n")
        assert one[0].digest != other[0].digest
        assert one[0].head == (0, 11)

    def test_positions_are_lines_of_the_file(self, tmp_path):
        pieces = self.pieces(tmp_path, b'"te\nxt",label\na,b\n')
        assert pieces[0].first == 2

    def test_a_quote_that_is_never_closed_is_refused_without_reading_on(self, tmp_path):
        with pytest.raises(BadData, match=r"a\.csv:2: .*closing quote"):
            self.pieces(tmp_path, b"text,label\n" + b'"never closed\n' + b"a,b\n" * 10_000)


class TestJsonArrays:
    def lines(self, tmp_path: Path, text: str, limit: int = 1_000_000) -> list:
        file = tmp_path / "a.json"
        file.write_text(text)
        out = array_to_lines(file, tmp_path / "out.jsonl", "a.json", limit, "utf-8")
        return [json.loads(line) for line in out.read_text().splitlines()]

    @given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.text() | st.integers(0, 9))))
    @a_folder
    @pytest.mark.parametrize("indent", [None, 2])
    def test_elements_become_lines(self, tmp_path, rows, indent):
        # Text beyond ASCII is escaped, or a lone surrogate could not be written to begin with.
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
            ('[{"a": 1}, {"a": 2}', "is missing"),
            ('[{"a": 1} {"a": 2}]', "',' is missing"),
            ('[{"a": 1}] extra', "more after its end"),
            ('[{"a": }]', "a.json:1"),
            ('[{"a": NaN}]', "NaN"),
        ],
    )
    def test_malformed(self, tmp_path, text, message):
        with pytest.raises(BadData) as error:
            self.lines(tmp_path, text)
        assert message in str(error.value)

    def test_a_gigantic_element_is_refused(self, tmp_path):
        with pytest.raises(BadData, match=r"a record of more than 0\.01 MB"):
            self.lines(tmp_path, json.dumps([{"text": "x" * 3_000_000}]), limit=10_000)


class TestLongLines:
    def test_one_is_refused_after_reading_no_more_than_the_limit(self, tmp_path):
        file = tmp_path / "a.jsonl"
        with open(file, "wb") as out:
            out.write(b'{"text": "short"}\n')
            out.truncate(5 << 30)  # a sparse file of 5 GB without a line break
        with pytest.raises(BadData, match=r"a\.jsonl:2: found a record of more than 1 MB"):
            list(cut_lines(file, "a.jsonl", 1_000_000, "utf-8"))

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le"])
    def test_encodings_of_wide_units_are_refused(self, tmp_path, encoding):
        with pytest.raises(BadRecipe, match=r"data\.encoding"):
            list(cut_lines(tmp_path / "a", "a", 1_000, encoding))

    def test_unknown_encodings_are_refused(self, tmp_path):
        with pytest.raises(BadRecipe, match="encodings that Python knows"):
            list(cut_lines(tmp_path / "a", "a", 1_000, "utf-8, klingon"))


def reading(format: str = "jsonl", **settings) -> Reading:
    return Reading.of(DataRecipe(uri="x", **settings), format, "", 0)


def read_lines(tmp_path: Path, data: bytes, how: Reading) -> pa.Table:
    """Read JSON lines as one piece."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(data)
    piece = Chunk("", 0, 0, len(data), len(data))
    out = tmp_path / "out"
    [folder] = read_chunk(Job(piece, how, "a.jsonl", str(file), str(out)))
    return folder


class TestShard:
    rows = some_rows(300)

    @pytest.fixture
    def shard(self, tmp_path) -> Path:
        data = "".join(json.dumps(row) + "\n" for row in self.rows).encode()
        return read_lines(tmp_path, data, reading())

    def test_rows_keep_text_and_order(self, shard):
        table = pq.read_table(shard / "rows.parquet")
        assert table["text"].to_pylist() == [row["text"] for row in self.rows]
        assert table["label"].to_pylist() == [row["label"] for row in self.rows]

    def test_the_index_is_sorted_and_points_to_the_rows(self, shard):
        index = np.load(shard / "index.npy")
        table = pq.read_table(shard / "rows.parquet")
        assert index.dtype == INDEX
        pairs = list(zip(index["hash_hi"].tolist(), index["hash_lo"].tolist(), strict=True))
        assert pairs == sorted(pairs)
        for name in ("hash_hi", "hash_lo", "raw", "split"):
            assert (table[name].to_numpy()[index["row"]] == index[name]).all()

    def test_statistics(self, shard):
        stats = json.loads((shard / "stats.json").read_bytes())
        table = pq.read_table(shard / "rows.parquet")
        assert stats["rows"] == len(self.rows) == sum(stats["lengths"].values())
        for label, entry in stats["labels"].items():
            mine = table.filter(pa.compute.equal(table["label"], label))
            splits = mine["split"].to_pylist()
            assert entry["splits"] == [splits.count(split) for split in SPLIT_NAMES]
            assert self.rows[entry["at"]]["label"] == label
            assert label not in [row["label"] for row in self.rows[: entry["at"]]]

    def test_equal_pieces_give_equal_bytes(self, shard, tmp_path_factory):
        data = "".join(json.dumps(row) + "\n" for row in self.rows).encode()
        again = read_lines(tmp_path_factory.mktemp("other"), data, reading())
        for file in shard.iterdir():
            assert file.read_bytes() == (again / file.name).read_bytes()

    def test_values_become_strings(self, tmp_path):
        rows = [
            {"text": "a b", "label": 1, "n": 1.5, "flag": True, "list": [1, "x"]},
            {"text": "c d", "label": True, "n": None},
            {"text": "e f", "label": 2.0, "flag": False},
            {"text": "g h", "label": " padded ", "n": "s"},
        ]
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        how = reading(keep_columns=("n", "flag", "list"))
        table = pq.read_table(read_lines(tmp_path, data, how) / "rows.parquet")
        assert table["label"].to_pylist() == ["1", "true", "2", "padded"]
        assert table["n"].to_pylist() == ["1.5", "", "", "s"]
        assert table["flag"].to_pylist() == ["true", "", "false", ""]
        assert table["list"].to_pylist() == ['[1, "x"]', "", "", ""]

    def test_each_line_may_have_its_own_encoding(self, tmp_path):
        data = (
            '{"text": "£1 a", "label": "x"}\n'.encode()
            + '{"text": "£2 b", "label": "y"}\n'.encode("cp1252")
        )
        folder = read_lines(tmp_path, data, reading(encoding="utf-8, cp1252"))
        assert pq.read_table(folder / "rows.parquet")["text"].to_pylist() == ["£1 a", "£2 b"]


class TestHashes:
    @given(st.text(), st.sampled_from([" ", "\n", "\t  ", "\u3000"]))
    def test_whitespace_and_case_do_not_matter(self, text, space):
        loose = space + text.upper().lower().replace(" ", space + " ") + space
        assert normal_form(loose) == normal_form(text.upper().lower())

    def test_compatible_characters_are_equal(self):
        assert normal_form("ﬁne ＡＢＣ") == normal_form("fine abc")

    @given(st.text(), st.text(), st.text(), st.text())
    def test_a_pair_is_not_its_concatenation(self, a, b, c, d):
        same = (a, b) == (c, d)
        valid = [each.encode("utf-8", "ignore").decode() for each in (a, b, c, d)]
        if valid == [a, b, c, d]:
            assert (input_hash(a, b) == input_hash(c, d)) == same

    def test_the_hash_is_pinned(self):
        """Every release keeps such hashes: a change would make it forget what it has seen."""
        assert input_hash("hello world").hex() == "b925621449205dd23e5a615ab7026500"
        assert split_of(input_hash("hello world"), SplitRecipe()) == TEST

    def test_shares_are_as_asked(self):
        how = SplitRecipe(test=0.2, validation=0.1)
        drawn = [split_of(b"%d" % number, how) for number in range(20_000)]
        assert abs(drawn.count(TEST) / 20_000 - 0.2) < 0.01
        assert abs(drawn.count(VALIDATION) / 20_000 - 0.1) < 0.01

    @given(st.binary(), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
    def test_a_larger_test_share_only_adds(self, identity, share, more):
        if split_of(identity, SplitRecipe(test=share, validation=0.1)) == TEST:
            assert split_of(identity, SplitRecipe(test=share + more, validation=0.1)) == TEST


class TestMinHash:
    texts = [normal_form(row["text"]) for row in some_rows(200)] + ["one", "one two", "a b c"]

    def test_signatures_are_those_of_datasketch(self):
        hashes, starts = shingles(self.texts)
        ours = signatures(hashes, starts)
        stops = [*starts[1:].tolist(), len(hashes)]
        for number, (start, stop) in enumerate(zip(starts.tolist(), stops, strict=True)):
            theirs = datasketch.MinHash(PERMUTATIONS, seed=SEED, hashfunc=int, scheme="affine32")
            theirs.update_batch(hashes[start:stop].tolist())
            assert (theirs.hashvalues == ours[number]).all()

    def test_permutations_are_those_of_datasketch(self):
        theirs = datasketch.MinHash(PERMUTATIONS, seed=SEED, scheme="affine32").permutations
        assert (np.stack(permutations()) == theirs).all()

    def test_similarity_is_estimated(self):
        words = self.texts[0].split() * 3 + [f"w{number}" for number in range(150)]
        other = words[:-30] + [f"v{number}" for number in range(30)]
        sets = [
            {tuple(each[n : n + SHINGLE]) for n in range(len(each) - SHINGLE + 1)}
            for each in (words, other)
        ]
        true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        signed = signatures(*shingles([" ".join(words), " ".join(other)]))
        assert abs((signed[0] == signed[1]).mean() - true) < 0.2

    def test_equal_texts_share_all_bands_and_different_ones_none(self):
        keys = band_keys([self.texts[0], self.texts[1], self.texts[0]])
        assert keys.shape == (3, BANDS)
        assert (keys[0] == keys[2]).all()
        assert not (keys[0] == keys[1]).any()

    @given(st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=9), min_size=1))
    def test_a_text_has_the_keys_it_has_alone(self, many):
        texts = [" ".join(words) for words in many]
        together = band_keys(texts)
        for text, keys in zip(texts, together, strict=True):
            assert (band_keys([text])[0] == keys).all()


class TestLengthBins:
    @given(st.integers(0, 10**7))
    def test_a_bin_starts_close_below(self, length):
        start = bin_start(length_bin(length))
        assert start <= length < start + max(1, start / 16 + 1)


class TestSplitNames:
    @pytest.mark.parametrize(
        ("path", "split"),
        [
            ("train.jsonl", TRAIN),
            ("data/test-00000-of-00001.parquet", TEST),
            ("validation/data-00000-of-00002.arrow", VALIDATION),
            ("my_dev.csv", VALIDATION),
            ("news.eval.csv", TEST),
            ("train/test.csv", TEST),
            ("contest.csv", 0),
            ("latest.csv", 0),
        ],
    )
    def test_names(self, path, split):
        assert split_by_name(path) == split
