"""Merging in host memory: the same weights as merging all at once where they are."""

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


def quantised(folder, dtype):
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


def shake(model):
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Like trained ones that are read: of the first values, which the base's number format
            # may have rounded, nothing is left.
            parameter.data.normal_(std=0.1)
    return model


def assert_equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def merged_at_once(model, dtype):
    """All of it in fp32, as peft does it."""
    return model.float().merge_and_unload(safe_merge=True).to(dtype)


@pytest.fixture
def tiny_gpt2(tmp_path):
    """A model whose linear layers are `Conv1D`, square ones among them."""
    torch.manual_seed(1)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=128, bos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


class TestABaseBroughtHome:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_has_the_weights_that_dequantising_makes(self, tiny_lm, dtype):
        home = merge.bring_home(quantised(tiny_lm, dtype), dtype)
        assert_equal(home, quantised(tiny_lm, dtype).dequantize(dtype=dtype))
        assert {each.device.type for each in home.state_dict().values()} == {"cpu"}
        assert home.get_input_embeddings().weight is home.get_output_embeddings().weight

    def test_is_quantised_no_more(self, tiny_lm, tmp_path):
        home = merge.bring_home(quantised(tiny_lm, torch.float32), torch.float32)
        assert not any(isinstance(module, Linear4bit) for module in home.modules())
        assert not home.is_quantized and not hasattr(home.config, "quantization_config")

    def test_gives_back_each_layer_before_the_next(self, tiny_lm, monkeypatch):
        base, left = quantised(tiny_lm, torch.float32), []
        layers = [m for m in base.modules() if isinstance(m, Linear4bit)]
        packed = [weakref.ref(module.weight) for module in layers]
        del layers
        real = merge._plain

        def counted(module, dtype):
            left.append(sum(each() is not None for each in packed))
            return real(module, dtype)

        monkeypatch.setattr(merge, "_plain", counted)
        gc.disable()
        try:
            merge.bring_home(base, torch.float32)
        finally:
            gc.enable()
        assert left == list(range(14, 0, -1))
        assert not any(each() is not None for each in packed)

    def test_that_was_not_quantised_stays_as_it_is(self, tiny_lm):
        base = causal.load_causal(Path(tiny_lm), dtype=torch.bfloat16)
        assert merge.bring_home(base, torch.bfloat16) is base
        assert_equal(base, causal.load_causal(Path(tiny_lm), dtype=torch.bfloat16))

    def test_has_its_weights_the_way_round_that_its_files_have(self, tiny_gpt2, tmp_path):
        base = quantised(tiny_gpt2, torch.float32)
        ids = torch.arange(9)[None]
        with torch.no_grad():
            expected = base(input_ids=ids, use_cache=False).logits
            merge.bring_home(base, torch.float32).save_pretrained(tmp_path / "out")
            shipped = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
            found = shipped(input_ids=ids, use_cache=False).logits
        assert torch.allclose(found, expected, atol=1e-5)


class TestAMergedModel:
    @pytest.mark.parametrize("changes", [{}, {"dora": True, "target_modules": ["q_proj"]}])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_that_of_merging_all_at_once(self, tiny_lm, dtype, changes):
        lora = LoraRecipe(**{"r": 4, **changes}).model_dump(mode="json")
        home = merge.bring_home(quantised(tiny_lm, dtype), dtype)
        found = merge.merge(shake(causal.attach_lora(home, lora, 1)), torch.bfloat16)
        base = quantised(tiny_lm, dtype).dequantize(dtype=dtype)
        wanted = merged_at_once(shake(causal.attach_lora(base, lora, 1)), torch.bfloat16)
        assert_equal(found, wanted)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_of_a_classifier_is_so_too(self, tiny_base, dtype):
        lora = LoraRecipe(r=4).model_dump(mode="json")
        base, heads = classifier(tiny_base, dtype)
        home = merge.bring_home(base, dtype)
        found = merge.merge(shake(adapter.attach_lora(home, lora, heads, 1)), torch.float16)
        base, heads = classifier(tiny_base, dtype)
        base = base.dequantize(dtype=torch.float32)
        wanted = merged_at_once(shake(adapter.attach_lora(base, lora, heads, 1)), torch.float16)
        assert_equal(found, wanted)

    def test_of_other_layers_has_the_adapter_the_right_way_round(self, tiny_gpt2):
        lora = LoraRecipe(r=4, dropout=0.0).model_dump(mode="json")
        trained = shake(causal.attach_lora(quantised(tiny_gpt2, torch.float32), lora, 1)).eval()
        home = merge.bring_home(quantised(tiny_gpt2, torch.float32), torch.float32)
        found = merge.merge(shake(causal.attach_lora(home, lora, 1)), torch.float32)
        ids = torch.arange(9)[None]
        with torch.no_grad():
            one, other = (each(input_ids=ids, use_cache=False).logits for each in (trained, found))
        assert torch.allclose(one, other, atol=1e-4)


class TestWhereABaseIsRead:
    def test_is_where_it_was_quantised_or_the_host(self):
        assert merge.read_on("cuda", "nf4") == "cuda"
        assert merge.read_on("cuda", "none") == merge.read_on("cpu", "nf4") == "cpu"
