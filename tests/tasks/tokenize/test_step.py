"""Tokenizing: the ids are the tokenizer's own, and made once a shard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BadData
from tasks.contracts.results import Loaded, Tokenized
from tasks.runtime.context import RunContext
from tasks.storage.store import open_store
from tasks.tokenize import step as tokenize_step
from tasks.tokenize.step import TokenizeInputs, tokenize
from tests.tasks.samples import load_data, read_json, run_context, some_rows, write_jsonl

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
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenize")


@pytest.fixture(scope="module")
def where(place) -> RunContext:
    return run_context(place)


@pytest.fixture(scope="module")
def tokenizer(minilm, place, where) -> Artifact:
    folder = place / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "config.json"):
        shutil.copy(minilm / name, folder)
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
    monkeypatch.setattr(tokenize_step, "run_program", None)


def shards_of(tokenized: Tokenized, where: RunContext) -> dict[str, Artifact]:
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

    def test_ids_are_those_of_the_tokenizer(self, table, rows, minilm):
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(minilm)
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

    def test_the_longest_is_measured_before_cutting(self, tokenized, minilm):
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(minilm)
        lengths = [len(own(row["text"])["input_ids"]) for row in ROWS + LONG + ODD]
        assert tokenized.longest == max(lengths) > 64


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


class TestALanguageModel:
    """Rows of a completion: `<number> and` goes on as ` more` so many times."""

    @pytest.fixture(scope="class")
    def language(self, tiny_lm, place, where) -> Artifact:
        folder = place / "language"
        shutil.copytree(tiny_lm, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        return open_store(where.store).put("tokenizer", folder)

    @pytest.fixture
    def dataset(self, where, tmp_path):
        """Stores shards of completions as a dataset; returns its inputs of the step."""

        def make(language, *shards, keep=1, **settings) -> TokenizeInputs:
            store = open_store(where.store)
            listed, kept = [], {}
            for number, counts in enumerate(shards):
                folder = tmp_path / f"shard{number}"
                folder.mkdir()
                examples = [
                    json.dumps({"prompt": f"{n} and", "completion": " more" * n}) for n in counts
                ]
                table = {
                    "text": [f"{n} and" for n in counts],
                    "example": examples,
                    "label": [""] * len(counts),
                    "hash_hi": pa.array([n * 7919 % 1000 for n in counts], pa.uint64()),
                    "hash_lo": pa.array(counts, pa.uint64()),
                }
                pq.write_table(pa.table(table), folder / "rows.parquet")
                shard = store.put("shard", folder)
                listed.append({"artifact": shard.model_dump(mode="json")})
                kept[shard.digest] = np.full(len(counts), keep, np.uint8)
                kept[shard.digest][-1] = 2
            folder = tmp_path / "dataset"
            folder.mkdir()
            (folder / "dataset.json").write_text(json.dumps({"shards": listed}))
            np.savez(folder / "keep.npz", **kept)
            settings = {"task": "completion", "max_length": 16} | settings
            return TokenizeInputs(
                dataset=store.put("dataset", folder), tokenizer=language, **settings
            )

        return make

    def test_has_its_tokens_counted(self, dataset, language, where):
        found = tokenize.once(dataset(language, [1, 30, 6], [5, 4]), where)
        # Each prompt has two tokens (three from 10 on), each completion one for a word and the end.
        assert (found.tokens, found.target_tokens) == (4 + 7 + 8 + 9 + 16, 2 + 5 + 6 + 7 + 13)
        assert (found.truncated, found.left_out, found.longest) == (1, 0, 34)
        assert (found.shards, found.new_shards, found.warnings) == (2, 2, ())

    def test_says_what_is_left_out(self, dataset, language, where):
        found = tokenize.once(dataset(language, [1, 2, 30, 40, 3], too_long="drop"), where)
        assert found.left_out == 2
        assert found.warnings == (
            "2 of 5 examples are left out: they are longer than 16 tokens (training.max_length, "
            "training.too_long: drop)",
        )

    def test_is_refused_if_no_example_is_left(self, dataset, language, where):
        with pytest.raises(
            BadData, match="no training examples left of 2: they are longer"
        ) as error:
            tokenize.once(dataset(language, [30, 40, 3], too_long="drop"), where)
        assert "the longest has 44 tokens" in error.value.expected

    def test_shows_training_examples_whatever_the_order_of_shards(self, dataset, language, where):
        found = tokenize.once(dataset(language, [1, 2, 3, 4], [5, 6, 7, 8]), where)
        shown = read_json(open_store(where.store), found.artifact, "samples.json")
        # By hash 3 and 6 would come before, but 4 and 8 are for validation.
        order = sorted((n * 7919 % 1000, n) for n in (1, 2, 3, 5, 6, 7))[:3]
        assert [each["segments"] for each in shown] == [
            [
                {"target": False, "text": f"{n} and"},
                {"target": True, "text": " more" * n + "<|im_end|>"},
            ]
            for _, n in order
        ]

    def test_is_other_work_with_another_policy(self, dataset, language, where, tmp_path):
        inputs = dataset(language, [1, 30, 2])
        assert tokenize.once(inputs, where).shards == 1
        dropping = inputs.model_copy(update={"too_long": "drop"})
        assert tokenize.key(inputs) != tokenize.key(dropping)
        assert tokenize.once(dropping, where).new_shards == 1

    def test_alone_reads_the_policy(self, loaded, tokenizer):
        inputs = inputs_of(loaded, tokenizer)
        assert tokenize.key(inputs) == tokenize.key(inputs.model_copy(update={"too_long": "drop"}))
