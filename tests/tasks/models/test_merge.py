"""Merging in host memory gives the same weights as merging all at once on the device."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, GPT2Config

from tasks.contracts.recipe_training import LoraRecipe
from tasks.models import adapter, causal, merge
from tasks.models import classifier as models

DTYPES = [torch.float32, torch.bfloat16]
LABELS = ["business", "sports", "tech"]


def quantized(folder, dtype):
    return causal.load_causal(Path(folder), dtype=dtype, quantization="nf4")


def classifier(folder, dtype):
    base, heads = models.load_classifier(
        Path(folder),
        LABELS,
        seed=1,
        dtype=dtype,
        quantization="nf4",
        head_modules=["classifier"],
    )
    return base, heads


def randomize(model):
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Replace all initial values: the base's dtype may have rounded them.
            parameter.data.normal_(std=0.1)
    return model


def assert_equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def merged_at_once(model, dtype):
    """Merged in fp32 as a whole, as peft does."""
    return model.float().merge_and_unload(safe_merge=True).to(dtype)


@pytest.fixture
def tiny_gpt2(tmp_path):
    """A model whose linear layers are `Conv1D`, some of them square."""
    torch.manual_seed(1)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=128, bos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


class TestDequantizeToHost:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_gives_the_weights_of_dequantize(self, tiny_lm, dtype):
        plain = merge.dequantize_to_host(quantized(tiny_lm, dtype), dtype)
        assert_equal(plain, quantized(tiny_lm, dtype).dequantize(dtype=dtype))
        assert {each.device.type for each in plain.state_dict().values()} == {"cpu"}
        assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight

    def test_leaves_nothing_quantized(self, tiny_lm, tmp_path):
        plain = merge.dequantize_to_host(quantized(tiny_lm, torch.float32), torch.float32)
        assert not any(isinstance(module, Linear4bit) for module in plain.modules())
        assert not plain.is_quantized and not hasattr(plain.config, "quantization_config")

    def test_frees_each_layer_before_the_next(self, tiny_lm, monkeypatch):
        base, left = quantized(tiny_lm, torch.float32), []
        layers = [m for m in base.modules() if isinstance(m, Linear4bit)]
        packed = [weakref.ref(module.weight) for module in layers]
        del layers
        real = merge.dequantize_layer

        def counted(module, dtype):
            left.append(sum(each() is not None for each in packed))
            return real(module, dtype)

        monkeypatch.setattr(merge, "dequantize_layer", counted)
        gc.disable()
        try:
            merge.dequantize_to_host(base, torch.float32)
        finally:
            gc.enable()
        assert left == list(range(14, 0, -1))
        assert not any(each() is not None for each in packed)

    def test_an_unquantized_base_is_unchanged(self, tiny_lm):
        base = causal.load_causal(Path(tiny_lm), dtype=torch.bfloat16)
        assert merge.dequantize_to_host(base, torch.bfloat16) is base
        assert_equal(base, causal.load_causal(Path(tiny_lm), dtype=torch.bfloat16))

    def test_conv1d_weights_are_saved_in_their_own_layout(self, tiny_gpt2, tmp_path):
        base = quantized(tiny_gpt2, torch.float32)
        ids = torch.arange(9)[None]
        with torch.no_grad():
            expected = base(input_ids=ids, use_cache=False).logits
            merge.dequantize_to_host(base, torch.float32).save_pretrained(tmp_path / "out")
            shipped = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
            found = shipped(input_ids=ids, use_cache=False).logits
        assert torch.allclose(found, expected, atol=1e-5)


class TestMerge:
    @pytest.mark.parametrize("changes", [{}, {"dora": True, "target_modules": ["q_proj"]}])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equals_merging_all_at_once(self, tiny_lm, dtype, changes):
        lora = LoraRecipe(**{"r": 4, **changes})
        plain = merge.dequantize_to_host(quantized(tiny_lm, dtype), dtype)
        found = merge.merge(randomize(causal.attach_lora(plain, lora, 1)), torch.bfloat16)
        base = quantized(tiny_lm, dtype).dequantize(dtype=dtype)
        expected = merged_at_once(randomize(causal.attach_lora(base, lora, 1)), torch.bfloat16)
        assert_equal(found, expected)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_of_a_classifier_equals_merging_all_at_once(self, tiny_base, dtype):
        lora = LoraRecipe(r=4)
        base, heads = classifier(tiny_base, dtype)
        plain = merge.dequantize_to_host(base, dtype)
        found = merge.merge(randomize(adapter.attach_lora(plain, lora, heads, 1)), torch.float16)
        base, heads = classifier(tiny_base, dtype)
        base = base.dequantize(dtype=torch.float32)
        expected = merged_at_once(
            randomize(adapter.attach_lora(base, lora, heads, 1)), torch.float16
        )
        assert_equal(found, expected)

    def test_of_conv1d_layers_gives_the_trained_outputs(self, tiny_gpt2):
        lora = LoraRecipe(r=4, dropout=0.0)
        trained = randomize(causal.attach_lora(quantized(tiny_gpt2, torch.float32), lora, 1)).eval()
        plain = merge.dequantize_to_host(quantized(tiny_gpt2, torch.float32), torch.float32)
        found = merge.merge(randomize(causal.attach_lora(plain, lora, 1)), torch.float32)
        ids = torch.arange(9)[None]
        with torch.no_grad():
            one, other = (each(input_ids=ids, use_cache=False).logits for each in (trained, found))
        assert torch.allclose(one, other, atol=1e-4)


class TestMergeDevice:
    def test_is_the_training_device_only_for_a_quantized_base(self):
        assert merge.merge_device("cuda", "nf4") == "cuda"
        assert merge.merge_device("cuda", "none") == merge.merge_device("cpu", "nf4") == "cpu"
