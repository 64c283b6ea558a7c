"""Loading quantized classifiers, and shipping what was trained on them."""

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tasks.contracts.errors import BadModel
from tasks.contracts.recipe_training import LoraRecipe
from tasks.finetune import program as finetune_program
from tasks.models import adapter as adapter_
from tasks.models import classifier
from tests.tasks.conftest import LABELS, MAX_LENGTH


def batch_of(base, texts):
    tokenizer = AutoTokenizer.from_pretrained(base)
    options = {"truncation": True, "max_length": MAX_LENGTH, "padding": True}
    return tokenizer(texts, return_tensors="pt", **options)


class TestNf4:
    @pytest.fixture
    def trained(self, tiny_base):
        """An nf4 base with an adapter that changes its outputs."""
        base, heads = classifier.load_classifier(
            tiny_base,
            LABELS,
            seed=1,
            dtype=torch.float32,
            quantization="nf4",
            head_modules=["classifier"],
        )
        lora = LoraRecipe(r=4, alpha=8, dropout=0.0)
        model = adapter_.attach_lora(base, lora, heads, seed=1)
        torch.manual_seed(2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
        return model

    def first_layer_gradient(self, model, batch):
        torch.manual_seed(0)  # The head has dropout.
        model.train().zero_grad()
        labels = torch.arange(len(batch["input_ids"])) % len(LABELS)
        model(**batch, labels=labels).loss.backward()
        name = "encoder.layer.0.attention.self.query.lora_A"
        return next(p.grad.clone() for n, p in model.named_parameters() if name in n)

    def test_an_evaluation_does_not_change_later_gradients(self, trained, tiny_base, news):
        batch = batch_of(tiny_base, [row["text"] for row in news[:6]])
        before = self.first_layer_gradient(trained, batch)
        with torch.no_grad():
            trained.eval()(**batch)
        after = self.first_layer_gradient(trained, batch)
        assert before.abs().max() > 0
        assert torch.equal(before, after)

    def test_does_not_quantize_the_head(self, trained):
        kinds = {type(m).__name__ for m in trained.classifier.modules()}
        assert "Linear4bit" not in kinds
        assert "Linear4bit" in {type(m).__name__ for m in trained.modules()}

    def test_quantizes_the_constants_too(self, trained):
        layer = trained.get_submodule("base_model.model.bert.encoder.layer.0.output.dense")
        state = layer.base_layer.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)

    def test_ships_the_model_that_was_trained(self, train_job, trained, tiny_base, news, tmp_path):
        batch = batch_of(tiny_base, [row["text"] for row in news])
        with torch.no_grad():
            expected = trained.eval()(**batch).logits
        adapter_.save_adapter(trained, tmp_path / "adapter.safetensors")
        lora = {"r": 4, "alpha": 8, "dropout": 0.0}
        job = train_job(lora=lora, training={"seed": 1})
        finetune_program.ship(job, tmp_path / "adapter.safetensors")
        shipped = AutoModelForSequenceClassification.from_pretrained(job.out).eval()
        plain = train_job(lora=lora, training={"seed": 1}, quantization="none")
        finetune_program.ship(plain, tmp_path / "adapter.safetensors")
        other = AutoModelForSequenceClassification.from_pretrained(plain.out).eval()
        with torch.no_grad():
            assert torch.allclose(shipped(**batch).logits, expected, atol=1e-4)
            # Merged into the unquantized base it is another model.
            assert not torch.allclose(other(**batch).logits, expected, atol=1e-2)


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "deberta-v2": SIZES,
    "mpnet": SIZES,
    "longformer": {**SIZES, "attention_window": 4},
    "big_bird": {**SIZES, "attention_type": "original_full"},
    "fnet": {name: size for name, size in SIZES.items() if name != "num_attention_heads"},
    "xlnet": {"vocab_size": 40, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16},
    "funnel": {
        "vocab_size": 40,
        "block_sizes": [1, 1],
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 16,
        "num_decoder_layers": 1,
    },
    "bloom": {"vocab_size": 40, "hidden_size": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0},
    "gemma2": {**SIZES, "num_key_value_heads": 1, "head_dim": 8},
    "modernbert": {**SIZES, "cls_token_id": 1, "sep_token_id": 2},
}


class TestArchitectures:
    """Not every architecture has scaled dot product attention."""

    @pytest.mark.parametrize("kind", ARCHITECTURES)
    def test_load_with_the_attention_that_they_have(self, kind, tmp_path):
        config = AutoConfig.for_model(kind, **ARCHITECTURES[kind])
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
        model, heads = classifier.load_classifier(tmp_path, LABELS, seed=1)
        assert heads
        logits = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
        assert logits.shape == (1, len(LABELS)) and logits.isfinite().all()


class TestTokenizer:
    def test_without_a_pad_token_is_refused(self, tiny_base, tmp_path):
        backend = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
        backend.no_padding()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(BadModel, match=r"found a tokenizer without a pad token.*Fix: set"):
            classifier.load_tokenizer(tmp_path)
