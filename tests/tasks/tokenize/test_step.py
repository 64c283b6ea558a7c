"""The tokenize step gives the ids of the tokenizer, and tokenizes each shard once."""

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
from tests.tasks.language_samples import metaspace_tokenizer
from tests.tasks.samples import load_data, read_json, run_context, some_rows, write_jsonl

ROWS = some_rows(150)
LONG = [
    {"text": " ".join(row["text"] for row in some_rows(9, start=9 * n)), "label": "tech"}
    for n in range(40)
]
UNUSUAL = [
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
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenize")


@pytest.fixture(scope="module")
def context(folder) -> RunContext:
    return run_context(folder)


@pytest.fixture(scope="module")
def tokenizer(minilm, folder, context) -> Artifact:
    saved = folder / "tokenizer"
    saved.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "config.json"):
        shutil.copy(minilm / name, saved)
    return open_store(context.store).put("tokenizer", saved)


@pytest.fixture(scope="module")
def loaded(folder, context) -> Loaded:
    return load_data(write_jsonl(folder / "a.jsonl", ROWS + LONG + UNUSUAL + ROWS[:20]), context)


@pytest.fixture(scope="module")
def tokenized(loaded, tokenizer, context) -> Tokenized:
    return tokenize.once(inputs_of(loaded, tokenizer), context)


def inputs_of(loaded: Loaded, tokenizer: Artifact, max_length: int = 64) -> TokenizeInputs:
    return TokenizeInputs(dataset=loaded.artifact, tokenizer=tokenizer, max_length=max_length)


@pytest.fixture
def no_program(monkeypatch) -> None:
    monkeypatch.setattr(tokenize_step, "run_program", None)


def shards_of(tokenized: Tokenized, context: RunContext) -> dict[str, Artifact]:
    listed = read_json(open_store(context.store), tokenized.artifact, "tokens.json")
    return {digest: Artifact(**artifact) for digest, artifact in listed.items()}


class TestTokens:
    @pytest.fixture
    def table(self, tokenized, context) -> pa.Table:
        [tokens] = shards_of(tokenized, context).values()
        return pq.read_table(open_store(context.store).file(tokens, "tokens.parquet"))

    @pytest.fixture
    def rows(self, tokenized, context) -> pa.Table:
        [digest] = shards_of(tokenized, context)
        shard = Artifact(kind="shard", digest=digest, files=4, bytes=0, uri="")
        return pq.read_table(open_store(context.store).file(shard, "rows.parquet"))

    def test_have_the_ids_of_the_tokenizer(self, table, rows, minilm):
        from transformers import AutoTokenizer

        original = AutoTokenizer.from_pretrained(minilm)
        expected = original(rows["text"].to_pylist(), truncation=True, max_length=64)["input_ids"]
        assert table["input_ids"].to_pylist() == expected
        assert table["length"].to_pylist() == [len(ids) for ids in expected]
        full = original(rows["text"].to_pylist())["input_ids"]
        assert table["truncated"].to_pylist() == [len(ids) > 64 for ids in full]

    def test_have_the_documented_columns(self, table, rows):
        assert table.column_names == [
            "hash_hi",
            "hash_lo",
            "label",
            "input_ids",
            "token_type_ids",
            "length",
            "truncated",
        ]
        assert table.schema.field("input_ids").type == pa.list_(pa.int32())
        for name in ("hash_hi", "hash_lo"):
            assert table[name].equals(rows[name])
        assert table["label"].to_pylist() == rows["label"].to_pylist()

    def test_are_counted_in_kept_rows_only(self, tokenized, table, loaded, context):
        with np.load(open_store(context.store).file(loaded.artifact, "keep.npz")) as keep:
            [kept] = (keep[name] > 0 for name in keep.files)
        assert tokenized.tokens == table["length"].to_numpy()[kept].sum()
        assert tokenized.truncated == table["truncated"].to_numpy()[kept].sum()
        assert kept.sum() == len(ROWS + LONG + UNUSUAL)

    def test_of_the_longest_row_are_counted_before_truncation(self, tokenized, minilm):
        from transformers import AutoTokenizer

        original = AutoTokenizer.from_pretrained(minilm)
        lengths = [len(original(row["text"])["input_ids"]) for row in ROWS + LONG + UNUSUAL]
        assert tokenized.longest == max(lengths) > 64


class TestReuse:
    def test_known_shards_start_no_program(self, tokenized, loaded, tokenizer, context, no_program):
        again = context.model_copy(update={"repair": ("tokenize",)})
        result = tokenize.once(inputs_of(loaded, tokenizer), again)
        assert result.artifact == tokenized.artifact
        assert (result.new_shards, result.shards) == (0, 1)

    def test_only_new_shards_are_tokenized(self, tokenized, tokenizer, folder, context):
        write_jsonl(folder / "more" / "a.jsonl", ROWS + LONG + UNUSUAL + ROWS[:20])
        write_jsonl(folder / "more" / "b.jsonl", some_rows(30, start=500))
        more = load_data(folder / "more", context)
        result = tokenize.once(inputs_of(more, tokenizer), context)
        assert (result.new_shards, result.shards) == (1, 2)
        assert shards_of(tokenized, context).items() <= shards_of(result, context).items()
        assert result.tokens > tokenized.tokens

    def test_another_maximum_length_tokenizes_again(self, loaded, tokenizer, context):
        short = tokenize.once(inputs_of(loaded, tokenizer, 16), context)
        assert short.new_shards == 1
        assert short.truncated > 100

    def test_refresh_tokenizes_again_to_the_same_bytes(self, tokenized, loaded, tokenizer, context):
        again = context.model_copy(update={"refresh": ("tokenize",)})
        result = tokenize.once(inputs_of(loaded, tokenizer), again)
        assert result.new_shards == 1
        assert result.artifact.digest == tokenized.artifact.digest


class TestLanguageModel:
    """Row n is a completion: `n and` is followed by n times ` more`."""

    @pytest.fixture(scope="class")
    def language(self, tiny_lm, folder, context) -> Artifact:
        saved = folder / "language"
        shutil.copytree(tiny_lm, saved, ignore=shutil.ignore_patterns("*.safetensors"))
        return open_store(context.store).put("tokenizer", saved)

    @pytest.fixture
    def dataset(self, context, tmp_path):
        """Store shards of completions as a dataset; returns the inputs of the step.

        The last row of each shard is for validation, the others have split `keep`.
        """

        def counting(n: int) -> dict[str, str]:
            return {"prompt": f"{n} and", "completion": " more" * n}

        def make(language, *shards, keep=1, texts=counting, **settings) -> TokenizeInputs:
            store = open_store(context.store)
            listed, kept = [], {}
            for number, counts in enumerate(shards):
                folder = tmp_path / f"shard{number}"
                folder.mkdir()
                examples = [json.dumps(texts(n)) for n in counts]
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

    def test_tokens_are_counted(self, dataset, language, context):
        found = tokenize.once(dataset(language, [1, 30, 6], [5, 4]), context)
        # A prompt has two tokens (three from 10 on), a completion one per word and an end token.
        assert (found.tokens, found.target_tokens) == (4 + 7 + 8 + 9 + 16, 2 + 5 + 6 + 7 + 13)
        assert (found.truncated, found.left_out, found.longest) == (1, 0, 34)
        assert (found.shards, found.new_shards, found.warnings) == (2, 2, ())

    def test_warns_of_examples_that_are_left_out(self, dataset, language, context):
        found = tokenize.once(dataset(language, [1, 2, 30, 40, 3], too_long="drop"), context)
        assert found.left_out == 2
        assert found.warnings == (
            "2 of 5 examples are left out: they are longer than 16 tokens (training.max_length, "
            "training.too_long: drop)",
        )

    def test_warns_of_answers_that_are_trained_after_other_tokens_than_served(
        self, dataset, context, tmp_path
    ):
        metaspace_tokenizer("always").save_pretrained(tmp_path / "tokenizer")
        tokenizer = open_store(context.store).put("tokenizer", tmp_path / "tokenizer")

        def merging(n: int) -> dict[str, str]:
            return {"prompt": "red car\n" if n < 3 else "red", "completion": "red" * n}

        found = tokenize.once(dataset(tokenizer, [1, 2, 3, 4], texts=merging), context)
        assert len(found.warnings) == 1
        assert found.warnings[0].startswith("2 of 4 examples have an answer that changes the last")

    def test_is_refused_if_no_example_is_left(self, dataset, language, context):
        with pytest.raises(
            BadData, match="no training examples left of 2: they are longer"
        ) as error:
            tokenize.once(dataset(language, [30, 40, 3], too_long="drop"), context)
        assert "the longest has 44 tokens" in error.value.expected

    def test_samples_are_training_examples_whatever_the_order_of_shards(
        self, dataset, language, context
    ):
        found = tokenize.once(dataset(language, [1, 2, 3, 4], [5, 6, 7, 8]), context)
        samples = read_json(open_store(context.store), found.artifact, "samples.json")
        # By hash, 8 would come first, but it is for validation, like 4.
        order = sorted((n * 7919 % 1000, n) for n in (1, 2, 3, 5, 6, 7))[:3]
        assert [each["segments"] for each in samples] == [
            [
                {"target": False, "text": f"{n} and"},
                {"target": True, "text": " more" * n + "<|im_end|>"},
            ]
            for _, n in order
        ]

    def test_another_policy_for_long_examples_tokenizes_again(
        self, dataset, language, context, tmp_path
    ):
        inputs = dataset(language, [1, 30, 2])
        assert tokenize.once(inputs, context).shards == 1
        dropping = inputs.model_copy(update={"too_long": "drop"})
        assert tokenize.key(inputs) != tokenize.key(dropping)
        assert tokenize.once(dropping, context).new_shards == 1

    def test_only_language_models_read_the_policy(self, loaded, tokenizer):
        inputs = inputs_of(loaded, tokenizer)
        assert tokenize.key(inputs) == tokenize.key(inputs.model_copy(update={"too_long": "drop"}))
