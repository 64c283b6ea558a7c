"""What is found out about a base model, and which ones are refused before anything is spent."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from tasks.contracts.artifact import Inspected
from tasks.errors import BadModel
from tasks.programs.inspect_model import main
from tasks.programs.model import load_tokenizer
from tests.tasks.programs.conftest import LABELS, Notes, content


@pytest.fixture
def inspect(tmp_path):
    """Inspects a model's folder."""

    def inspect(base):
        job = {"base": str(base), "tokenizer_out": str(tmp_path / "tokenizer"), "labels": LABELS}
        return main(job, Notes())

    return inspect


@pytest.fixture
def base(tiny_base, tmp_path):
    """A copy of the tiny base, to be spoilt."""
    return shutil.copytree(tiny_base, tmp_path / "base")


class TestAModelThatCanBeTrained:
    def test_is_described_as_the_contract_says(self, inspect, tiny_base):
        found = inspect(tiny_base)
        assert set(found) == set(Inspected.model_fields) - {
            "schema_version",
            "artifact",
            "key",
            "made",
        }
        assert found["architecture"] == "BertForSequenceClassification"
        assert found["max_length"] == 64
        assert found["pad_token"] == "[PAD]"
        assert found["vocabulary"] == 30522

    def test_has_a_new_head_and_linear_modules_outside_of_it(self, inspect, tiny_base):
        found = inspect(tiny_base)
        assert found["head_modules"] == ["classifier"]
        assert "bert.encoder.layer.0.attention.self.query" in found["linear_modules"]
        assert "classifier" not in found["linear_modules"]
        assert len(found["linear_modules"]) == 2 * 6 + 1

    def test_that_lacks_a_part_gets_it_as_a_part_of_the_head(self, inspect, base):
        BertForMaskedLM.from_pretrained(base).save_pretrained(base)
        assert inspect(base)["head_modules"] == ["bert.pooler.dense", "classifier"]

    def test_that_was_a_classifier_has_the_same_head(self, inspect, base):
        BertForSequenceClassification.from_pretrained(base, num_labels=7).save_pretrained(base)
        found = inspect(base)
        assert found["head_modules"] == ["classifier"]
        assert "classifier" not in found["linear_modules"]

    def test_counts_positions_from_the_pad_token_in_some_families(self, inspect, base):
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = RobertaConfig(
            vocab_size=30522, intermediate_size=64, max_position_embeddings=66, **shape
        )
        RobertaModel(config).save_pretrained(base)
        found = inspect(base)
        assert found["max_length"] == 64
        assert found["head_modules"] == ["classifier"]
        assert not any(name.startswith("classifier") for name in found["linear_modules"])

    def test_may_be_a_decoder(self, inspect, base):
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        LlamaModel(LlamaConfig(vocab_size=30522, intermediate_size=64, **shape)).save_pretrained(
            base
        )
        found = inspect(base)
        assert found["head_modules"] == ["score"]
        assert "model.layers.0.self_attn.q_proj" in found["linear_modules"]

    def test_is_not_loaded_into_memory(self, inspect, base):
        weights = load_file(base / "model.safetensors")
        name = "encoder.layer.0.output.dense.weight"
        weights[name] = torch.full_like(weights[name], float("nan"))
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        assert inspect(base)["parameters"] > 0


class TestItsTokenizer:
    def test_is_saved_for_training(self, inspect, tiny_base, tmp_path):
        inspect(tiny_base)
        saved = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        assert saved("good news")["input_ids"][0] == saved.cls_token_id

    def test_is_saved_alike_however_it_was_used_or_loaded(
        self, inspect, base, tmp_path, monkeypatch
    ):
        inspect(base)
        before = content(tmp_path / "tokenizer")
        used = AutoTokenizer.from_pretrained(base)
        used(["a", "b c"], truncation=True, max_length=3, padding="max_length")
        used.save_pretrained(base)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        inspect(base)
        assert content(tmp_path / "tokenizer") == before

    def test_is_refused_where_it_has_no_token_to_pad_with(self, tiny_base, tmp_path):
        backend = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
        backend.no_padding()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(BadModel, match=r"found a tokenizer without a pad token.*Fix: set"):
            load_tokenizer(tmp_path)


class TestAModelIsRefused:
    def refused(self, inspect, base, found):
        with pytest.raises(BadModel, match=found) as caught:
            inspect(base)
        assert caught.value.where == "model.uri"
        return caught.value

    def test_without_a_configuration(self, inspect, base):
        (base / "config.json").unlink()
        self.refused(inspect, base, "no config.json")

    def test_without_a_tokenizer(self, inspect, base):
        for file in base.glob("tokenizer*"):
            file.unlink()
        error = self.refused(inspect, base, "a model without a tokenizer")
        assert "save_pretrained" in error.fix

    def test_with_pickled_weights_only(self, inspect, base):
        (base / "model.safetensors").unlink()
        (base / "pytorch_model.bin").write_bytes(b"anything")
        error = self.refused(inspect, base, "only pickled weights")
        assert "never loaded" in error.expected

    def test_without_weights(self, inspect, base):
        (base / "model.safetensors").unlink()
        self.refused(inspect, base, "no weights")

    def test_with_a_part_of_its_weights_missing(self, inspect, base):
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refused(inspect, base, "model-00001-of-00002.safetensors")

    def test_with_damaged_weights(self, inspect, base):
        whole = (base / "model.safetensors").read_bytes()
        (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        self.refused(inspect, base, "weights that cannot be loaded")

    def test_with_the_weights_of_another_architecture(self, inspect, base):
        save_file({"other": torch.zeros(3)}, base / "model.safetensors", metadata={"format": "pt"})
        self.refused(inspect, base, "another architecture")

    def test_with_code_of_its_own(self, inspect, base):
        config = json.loads((base / "config.json").read_text())
        config |= {"model_type": "homemade", "auto_map": {"AutoModel": "evil.Model"}}
        (base / "config.json").write_text(json.dumps(config))
        (base / "evil.py").write_text("raise SystemExit('its code was run')")
        self.refused(inspect, base, "homemade.*never run")

    def test_without_a_classification_head(self, inspect, base):
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
        self.refused(inspect, base, "no classification head")

    def test_with_more_token_ids_than_embeddings(self, inspect, base):
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(["[NEW]"])
        tokenizer.save_pretrained(base)
        self.refused(inspect, base, "30,523 ids for a model with 30,522 embedding rows")
