"""Scores of classifiers, compared with those that a consumer computes one by one."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import ScoreClassificationJob
from tasks.evaluate import classification_program
from tasks.finetune import program as finetune_program
from tests.tasks.conftest import DEVICE, LABELS, MAX_LENGTH, Notes


@pytest.fixture
def released(tiny_base, news, tmp_path):
    """A released classifier: merged, with its tokenizer."""
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_base, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)}
    )
    # Centered on the base's outputs, so that each label is predicted for some texts.
    texts = [row["text"] for row in news]
    tokenizer = AutoTokenizer.from_pretrained(tiny_base, model_max_length=MAX_LENGTH)
    with torch.no_grad():
        batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
        pooled = model.eval().bert(**batch).pooler_output
        model.classifier.weight.data.mul_(50)
        model.classifier.bias.data = -(pooled @ model.classifier.weight.T).mean(0)
    model.save_pretrained(tmp_path / "released")
    tokenizer.save_pretrained(tmp_path / "released")
    return tmp_path / "released"


@pytest.fixture
def scored(tmp_path):
    """Runs the program; returns its result and the table."""

    def run(model, examples, **changes):
        fields = {
            "model": model,
            "kind": "merged",
            "base": None,
            "quantization": "none",
            "tokenizer": None,
            "device": DEVICE,
            "max_length": None,
            "labels": LABELS,
            "seed": 1,
            "examples": examples,
            "batch_size": 7,
            "measure_latency": False,
            "check": None,
            "out": tmp_path / "scores.parquet",
        }
        result = classification_program.main(ScoreClassificationJob(**fields | changes), Notes())
        return result, pq.read_table(tmp_path / "scores.parquet")

    return run


def by_hand(folder, texts):
    """Logits as a consumer computes them, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return np.concatenate(
            [
                model(**tokenizer(text, truncation=True, return_tensors="pt")).logits.double()
                for text in texts
            ]
        )


class TestScores:
    def test_equal_those_of_a_consumer_in_the_given_order(self, scored, released, examples, news):
        _, table = scored(released, examples())
        expected = by_hand(released, [row["text"] for row in news])
        assert len(set(expected.argmax(1))) > 1
        assert table["predicted"].to_pylist() == [LABELS[n] for n in expected.argmax(1)]
        assert table["hash_hi"].to_pylist() == [row["hash_hi"] for row in news]
        assert table["hash_lo"].to_pylist() == [row["hash_lo"] for row in news]
        assert table["label"].to_pylist() == [row["label"] for row in news]

    def test_loss_is_in_nats(self, scored, released, examples, news):
        _, table = scored(released, examples())
        logits = torch.tensor(by_hand(released, [row["text"] for row in news]))
        truth = torch.tensor([LABELS.index(row["label"]) for row in news])
        expected = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        assert np.allclose(table["loss"].to_numpy(), expected.numpy(), atol=1e-5)

    def test_correct_means_that_prediction_and_label_agree(self, scored, released, examples):
        _, table = scored(released, examples())
        pairs = zip(table["predicted"].to_pylist(), table["label"].to_pylist(), strict=True)
        assert table["correct"].to_pylist() == [a == b for a, b in pairs]

    def test_hardly_depend_on_the_batch_size(self, scored, released, examples):
        _, one = scored(released, examples(), batch_size=1)
        _, all_at_once = scored(released, examples(), batch_size=100)
        assert np.allclose(one["loss"].to_numpy(), all_at_once["loss"].to_numpy(), atol=1e-5)

    def test_unknown_label_has_no_loss(self, scored, released, examples, news):
        rows = [news[0], news[1] | {"label": "gardening"}]
        _, table = scored(released, examples(rows))
        assert table["loss"].null_count == 1
        assert table["loss"][1].as_py() is None
        assert table["correct"][1].as_py() is False

    def test_slice_columns_are_strings(self, scored, released, examples, news):
        _, table = scored(released, examples(year=[2004] * len(news), desk=["a"] * len(news)))
        assert table["year"].to_pylist() == ["2004"] * len(news)
        assert table["desk"].to_pylist() == ["a"] * len(news)
        assert "text" not in table.column_names

    def test_length_is_that_before_truncation(self, scored, released, examples, news):
        _, table = scored(released, examples())
        tokenizer = AutoTokenizer.from_pretrained(released)
        assert table["length"][0].as_py() == len(tokenizer(news[0]["text"])["input_ids"])
        assert table["length"][0].as_py() > MAX_LENGTH

    def test_pairs_of_texts_are_read(self, scored, released, examples, news):
        _, alone = scored(released, examples([row | {"text": "short"} for row in news]))
        pairs = examples(
            [row | {"text": "short"} for row in news], text_pair=[row["text"] for row in news]
        )
        _, paired = scored(released, pairs)
        assert not np.allclose(alone["loss"].to_numpy(), paired["loss"].to_numpy())


class TestResult:
    def test_names_labels_and_size(self, scored, released, examples):
        result, _ = scored(released, examples())
        assert result.labels == tuple(LABELS)
        assert result.size_bytes == sum(p.stat().st_size for p in released.iterdir())
        assert result.milliseconds_per_example is None

    def test_has_a_latency_on_request(self, scored, released, examples):
        result, _ = scored(released, examples(), measure_latency=True)
        assert 0 < result.milliseconds_per_example < 5000


class TestBrokenModel:
    def test_nan_logits_fail_the_smoke_test(self, scored, released, examples):
        weights = load_file(released / "model.safetensors")
        weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], float("nan"))
        save_file(weights, released / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BadModel, match="not finite"):
            scored(released, examples())

    def test_unreadable_weights_are_refused(self, scored, released, examples):
        whole = (released / "model.safetensors").read_bytes()
        (released / "model.safetensors").write_bytes(whole[:1000])
        with pytest.raises(BadModel, match="cannot be loaded"):
            scored(released, examples())

    def test_missing_tokenizer_is_refused(self, scored, released, examples):
        for file in released.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(BadModel, match="tokenizer"):
            scored(released, examples())


class TestUntrainedModel:
    def test_is_the_base_with_a_head_drawn_from_the_seed(self, scored, tiny_base, examples):
        untrained = {"kind": "untrained", "base": str(tiny_base)}
        result, first = scored(tiny_base, examples(), **untrained)
        _, again = scored(tiny_base, examples(), **untrained)
        _, other = scored(tiny_base, examples(), **untrained, seed=2)
        assert result.labels == tuple(LABELS)
        assert first.equals(again)
        assert not np.allclose(first["loss"].to_numpy(), other["loss"].to_numpy())

    def test_does_not_use_the_head_of_the_base(self, scored, released, examples):
        _, trained = scored(released, examples())
        _, untrained = scored(released, examples(), kind="untrained", base=str(released))
        assert not np.allclose(trained["loss"].to_numpy(), untrained["loss"].to_numpy())


class TestAdapter:
    @pytest.mark.parametrize("quantization", ["none", "nf4"])
    def test_is_scored_on_the_base_it_was_trained_on(
        self, scored, train_job, tiny_base, examples, quantization
    ):
        merged = train_job(quantization=quantization, training={"epochs": 1})
        finetune_program.main(merged, Notes())
        adapter = train_job(quantization=quantization, training={"epochs": 1}, ship="adapter")
        shutil.rmtree(adapter.work, ignore_errors=True)
        shutil.copytree(merged.work, adapter.work)
        finetune_program.ship(adapter, adapter.work / "best" / "adapter.safetensors")
        _, one = scored(merged.out, examples())
        _, two = scored(
            adapter.out,
            examples(),
            kind="adapter",
            base=str(tiny_base),
            quantization=quantization,
        )
        assert np.allclose(one["loss"].to_numpy(), two["loss"].to_numpy(), atol=1e-4)
