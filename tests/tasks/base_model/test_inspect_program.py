"""Which facts about a base model are found, and which models are refused before training."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from tasks.base_model.inspect_program import main
from tasks.chat.template import CHATML
from tasks.contracts.errors import BadModel, BadRecipe
from tasks.contracts.jobs import InspectJob
from tasks.contracts.results import Inspected
from tests.tasks.conftest import LABELS, Notes, content


@pytest.fixture
def inspect(tmp_path):
    """Inspect a base model."""

    def inspect(base, task="text-classification", chat_template=""):
        job = InspectJob(
            base=base,
            task=task,
            labels=LABELS,
            chat_template=chat_template,
            tokenizer_out=tmp_path / "tokenizer",
        )
        return main(job, Notes())

    return inspect


@pytest.fixture
def base(tiny_base, tmp_path):
    """A copy of the tiny base, to be modified."""
    return shutil.copytree(tiny_base, tmp_path / "base")


class TestClassifier:
    def test_has_the_fields_of_the_contract(self, inspect, tiny_base):
        found = inspect(tiny_base)
        step_fields = {"schema_version", "artifact", "key", "provenance"}
        assert set(dict(found)) == set(Inspected.model_fields) - step_fields
        assert found.architecture == "BertForSequenceClassification"
        assert found.max_length == 64
        assert found.pad_token == "[PAD]"
        assert found.vocabulary == 30522

    def test_that_takes_no_token_types_gets_a_tokenizer_that_gives_none(
        self, inspect, tiny_base, tmp_path
    ):
        config = DistilBertConfig(dim=32, n_layers=1, n_heads=4, hidden_dim=64)
        DistilBertModel(config).save_pretrained(tmp_path / "distil")
        AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "distil")
        inspect(tmp_path / "distil")
        found = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")("A text.")
        assert set(found) == {"input_ids", "attention_mask"}
        inspect(tiny_base)
        assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "tokenizer")("A text.")

    def test_gets_a_new_head_whose_modules_are_no_adapter_targets(self, inspect, tiny_base):
        found = inspect(tiny_base)
        assert found.head_modules == ("classifier",)
        assert "bert.encoder.layer.0.attention.self.query" in found.linear_modules
        assert "classifier" not in found.linear_modules
        assert len(found.linear_modules) == 2 * 6 + 1

    def test_modules_without_weights_belong_to_the_new_head(self, inspect, base):
        BertForMaskedLM.from_pretrained(base).save_pretrained(base)
        assert inspect(base).head_modules == ("bert.pooler.dense", "classifier")

    def test_an_existing_classification_head_is_replaced(self, inspect, base):
        BertForSequenceClassification.from_pretrained(base, num_labels=7).save_pretrained(base)
        found = inspect(base)
        assert found.head_modules == ("classifier",)
        assert "classifier" not in found.linear_modules

    def test_maximum_length_excludes_unused_positions_of_roberta(self, inspect, base):
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = RobertaConfig(
            vocab_size=30522, intermediate_size=64, max_position_embeddings=66, **shape
        )
        RobertaModel(config).save_pretrained(base)
        found = inspect(base)
        assert found.max_length == 64
        assert found.head_modules == ("classifier",)
        assert not any(name.startswith("classifier") for name in found.linear_modules)

    def test_can_be_a_decoder(self, inspect, base):
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        LlamaModel(LlamaConfig(vocab_size=30522, intermediate_size=64, **shape)).save_pretrained(
            base
        )
        found = inspect(base)
        assert found.head_modules == ("score",)
        assert "model.layers.0.self_attn.q_proj" in found.linear_modules

    def test_weights_are_not_read(self, inspect, base):
        weights = load_file(base / "model.safetensors")
        name = "encoder.layer.0.output.dense.weight"
        weights[name] = torch.full_like(weights[name], float("nan"))
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        assert inspect(base).parameters > 0


def change(folder, file="config.json", **settings):
    """Change a model's configuration."""
    known = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(known | settings))


class TestSavedTokenizer:
    def test_has_the_ids_of_the_base(self, inspect, tiny_base, tmp_path):
        inspect(tiny_base)
        saved = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        assert saved("good news")["input_ids"][0] == saved.cls_token_id

    def test_does_not_depend_on_earlier_use_or_on_being_offline(
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


class TestRefusedModel:
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
        (base / "pytorch_model.bin").write_bytes(b"pickle")
        error = self.refused(inspect, base, "only pickled weights")
        assert "never loaded" in error.expected

    def test_without_weights(self, inspect, base):
        (base / "model.safetensors").unlink()
        self.refused(inspect, base, "no weights")

    def test_with_a_missing_weights_file(self, inspect, base):
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

    def test_with_quantized_weights(self, inspect, base):
        change(base, quantization_config={"quant_method": "awq", "bits": 4})
        error = self.refused(inspect, base, r"already quantized \(awq\)")
        assert "the model that it was quantized from" in error.fix

    def test_that_needs_remote_code(self, inspect, base):
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


class TestLanguageModel:
    @pytest.fixture
    def lm(self, tiny_lm, tmp_path):
        """A copy of the tiny language model, to be modified."""
        return shutil.copytree(tiny_lm, tmp_path / "lm")

    @pytest.fixture
    def with_tokenizer(self, lm):
        """Change attributes of the tokenizer; returns the model's folder."""

        def change(**changes):
            tokenizer = AutoTokenizer.from_pretrained(lm)
            for name, value in changes.items():
                setattr(tokenizer, name, value)
            (lm / "chat_template.jinja").unlink(missing_ok=True)
            tokenizer.save_pretrained(lm)
            return lm

        return change

    def test_has_the_fields_of_the_contract(self, inspect, tiny_lm):
        found = inspect(tiny_lm, "instruction")
        step_fields = {"schema_version", "artifact", "key", "provenance"}
        assert set(dict(found)) == set(Inspected.model_fields) - step_fields
        assert found.architecture == "LlamaForCausalLM"
        assert (found.max_length, found.vocabulary) == (256, 49152)
        assert found.head_modules == ()
        assert found.warnings == ()
        assert len(found.linear_modules) == 2 * 7
        assert not any("lm_head" in name for name in found.linear_modules)

    def test_has_the_expected_shape(self, inspect, tiny_lm):
        rows, layer = 49152, 32 * (32 + 16 + 16 + 32 + 64 + 64 + 64)
        assert inspect(tiny_lm, "completion").shape == {
            "hidden": 32,
            "layers": 2,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "intermediate": 64,
            "vocabulary": rows,
            "tied": 1,
            "parameters": rows * 32 + 2 * (layer + 2 * 32) + 32,
            "linear_parameters": 2 * layer,
            "largest_linear": 32 * 64,
            "embedding_parameters": rows * 32,
            "stored_bytes": 4,
        }

    def test_can_have_an_untied_output_layer(self, inspect, lm):
        model = LlamaForCausalLM.from_pretrained(lm)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.to(torch.bfloat16).save_pretrained(lm)
        shape = inspect(lm, "completion").shape
        assert (shape["tied"], shape["embedding_parameters"]) == (0, 2 * 49152 * 32)
        assert shape["stored_bytes"] == 2

    def test_has_a_pad_token_that_is_not_a_stop_token(self, inspect, tiny_lm, tmp_path):
        assert inspect(tiny_lm, "instruction").pad_token == "<|endoftext|>"
        saved = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        assert (saved.pad_token, saved.eos_token) == ("<|endoftext|>", "<|im_end|>")
        assert saved.chat_template == AutoTokenizer.from_pretrained(tiny_lm).chat_template

    def test_can_lack_a_pad_token(self, inspect, with_tokenizer, tmp_path):
        assert inspect(with_tokenizer(unk_token=None), "completion").pad_token == ""
        assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").pad_token is None

    @pytest.mark.parametrize("task", ["instruction", "preference"])
    def test_without_a_chat_template_is_refused_for_chat(self, inspect, with_tokenizer, task):
        lm = with_tokenizer(chat_template=None)
        with pytest.raises(BadModel, match="without a chat template") as caught:
            inspect(lm, task)
        assert caught.value.where == "model.chat_template"
        assert inspect(lm, "completion").architecture == "LlamaForCausalLM"

    def test_without_a_chat_template_can_get_chatml(self, inspect, with_tokenizer, tmp_path):
        lm = with_tokenizer(chat_template=None, eos_token="<|endoftext|>")
        found = inspect(lm, "instruction", "chatml")
        saved = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        assert (saved.chat_template, saved.eos_token) == (CHATML, "<|im_end|>")
        assert saved.pad_token == "<|endoftext|>"
        assert not any("chat template" in warning for warning in found.warnings)

    def test_gets_the_chat_template_of_the_recipe_with_a_warning(self, inspect, tiny_lm, tmp_path):
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        found = inspect(tiny_lm, "instruction", template)
        assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").chat_template == template
        assert found.warnings == (
            "the recipe's chat template (model.chat_template) replaces the tokenizer's own",
        )

    @pytest.mark.parametrize("template", ["{% for %}", "{{ messages[7].content }}"])
    def test_with_an_invalid_chat_template_is_refused(self, inspect, tiny_lm, template):
        with pytest.raises(BadRecipe) as caught:
            inspect(tiny_lm, "instruction", template)
        assert caught.value.where == "model.chat_template"

    def test_without_the_tokens_of_chatml_is_refused(self, inspect, lm):
        shutil.rmtree(lm)
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        LlamaForCausalLM(
            LlamaConfig(vocab_size=100, intermediate_size=64, **shape)
        ).save_pretrained(lm)
        tokenizer = Tokenizer(WordLevel({"a": 0, "<s>": 1, "[UNK]": 2}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>").save_pretrained(lm)
        with pytest.raises(BadModel, match=r"chatml for a tokenizer without <\|im_start\|> and"):
            inspect(lm, "instruction", "chatml")

    def test_warns_of_special_tokens_that_differ_from_those_of_its_tokenizer(self, inspect, lm):
        change(lm, eos_token_id=0)
        change(lm, "generation_config.json", eos_token_id=[0, 2], bos_token_id=7)
        assert inspect(lm, "completion").warnings == (
            "the tokenizer's bos_token is 1 (<|im_start|>), but generation_config.json has "
            "7 (<gh_stars>): the tokenizer's is used",
            "the tokenizer's eos_token is 2 (<|im_end|>), but config.json has 0 (<|endoftext|>): "
            "the tokenizer's is used",
        )

    def test_with_more_token_ids_than_embeddings_is_refused(self, inspect, lm):
        tokenizer = AutoTokenizer.from_pretrained(lm)
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(lm)
        with pytest.raises(BadModel, match="49,153 ids for a model with 49,152 embedding rows"):
            inspect(lm, "completion")

    def test_that_is_an_encoder_is_refused(self, inspect, tiny_base):
        with pytest.raises(BadModel, match="'bert', which does not generate text from left"):
            inspect(tiny_base, "completion")

    def test_with_missing_tensors_is_refused(self, inspect, lm):
        weights = load_file(lm / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, lm / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BadModel, match="1 tensors missing"):
            inspect(lm, "completion")
