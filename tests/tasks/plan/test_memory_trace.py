"""The memory trace: parts whose size is known, what changes them, and what is measured."""

import json

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config

from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe
from tasks.kernels import packed_attention
from tasks.models import causal
from tasks.plan import memory_trace
from tests.benchmarks.memory_forecast import child, make_model

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


@pytest.fixture
def setting(tmp_path):
    """A setting of a small Llama, with changes."""

    def make(config=None, plan=None, lora=None, **changes):
        folder = tmp_path / "base"
        (config or LlamaConfig(**SMALL)).save_pretrained(folder)
        settled = {"device": "cpu", "precision": "fp32", "attention": "packed", "packing": True}
        options = {
            "base": folder,
            "lora": LoraRecipe(**{"r": 8, "dropout": 0.0, **(lora or {})}),
            "quantization": "none",
            "plan": Plan(**settled | (plan or {})),
            "checkpointing": False,
            "tokens": 256,
            "longest": 64,
            "target_share": 1.0,
            "accumulates": False,
        }
        return memory_trace.Setting(**options | changes)

    return make


def total(parts):
    return sum(parts.values())


class TestTheParts:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_that_persist_are_those_of_the_real_model(self, setting, precision):
        chosen = setting(plan={"precision": precision})
        model = causal.attach_lora(real_model(chosen), chosen.lora, 0)
        frozen = [each for each in model.parameters() if not each.requires_grad]
        trained = [each for each in model.parameters() if each.requires_grad]
        parts = memory_trace.peak(chosen)
        buffers = bytes_of(model.buffers())
        assert parts["weights"] == bytes_of(frozen) + buffers
        assert parts["adapters"] == bytes_of(trained)
        assert parts["quantization constants"] == 0
        # Two numbers per weight, and the step count of each tensor.
        assert parts["optimizer"] == 2 * bytes_of(trained) + 4 * len(trained)

    def test_of_a_quantized_model_are_those_of_the_paper(self, setting):
        plain, quantized = (
            memory_trace.peak(setting(plan={"precision": "bf16"}, quantization=kind))
            for kind in ("none", "nf4")
        )
        linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160)
        assert plain["weights"] - quantized["weights"] == round(1.5 * linear)
        # A byte for each block of 64, four for each 256 of them and what is left over, two tables.
        least = linear / 64 + linear / 64 / 256 * 4
        assert least < quantized["quantization constants"] < least + 14 * (4 * 272 + 8)

    def test_of_an_8_bit_optimizer_are_two_bytes_per_weight(self, setting):
        parts = memory_trace.peak(setting(plan={"optimizer": "adamw_8bit"}, lora={"r": 128}))
        weights = parts["adapters"] / 4
        assert 2 * weights < parts["optimizer"] < 2.1 * weights


class TestMemory:
    def test_grows_with_the_tokens(self, setting):
        sizes = [total(memory_trace.peak(setting(tokens=tokens))) for tokens in (128, 256, 512)]
        assert sizes == sorted(sizes)
        assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.05)

    def test_is_less_with_checkpointing(self, setting):
        kept, twice = (memory_trace.peak(setting(checkpointing=each)) for each in (False, True))
        assert twice["activations"] < kept["activations"] / 4
        assert total(twice) < total(kept)

    def test_is_less_without_dropout(self, setting):
        none, some = (memory_trace.peak(setting(lora={"dropout": each})) for each in (0.0, 0.05))
        assert none["activations"] < some["activations"]

    def test_of_gradients_persists_if_they_accumulate(self, setting):
        once, often = (memory_trace.peak(setting(accumulates=each)) for each in (False, True))
        assert often["gradients"] >= often["adapters"] > once["gradients"]

    def test_of_many_layers_is_extrapolated_from_few(self, setting):
        config = LlamaConfig(**SMALL | {"num_hidden_layers": 8})
        for checkpointing in (False, True):
            chosen = setting(config, checkpointing=checkpointing)
            whole = max(total(parts) for parts in memory_trace.trace(chosen).values())
            parts = memory_trace.peak(chosen)
            assert total(parts) - parts["overhead"] == pytest.approx(whole, rel=0.01)

    @pytest.mark.parametrize(
        "config",
        [
            Qwen3Config(**SMALL, head_dim=16),
            Gemma2Config(**SMALL, head_dim=16),
            GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=512),
        ],
        ids=lambda config: config.model_type,
    )
    @pytest.mark.parametrize("quantization", ["none", "nf4"])
    def test_of_other_architectures_is_traced(self, setting, config, quantization):
        plan = {} if config.model_type != "gemma2" else {"packing": False, "attention": "eager"}
        try:
            parts = memory_trace.peak(setting(config, plan=plan, quantization=quantization))
        except packed_attention.UnsupportedAttention:
            pytest.skip("packed attention does not support it")
        assert parts["weights"] and parts["activations"]

    def test_of_one_of_several_processes_is_less_if_they_shard_the_model(self, setting):
        alone = memory_trace.peak(setting())
        copies, shares = (
            memory_trace.peak(setting(plan={"world_size": 4, "sharding": each}))
            for each in ("ddp", "fsdp")
        )
        assert total(copies) >= total(alone)
        assert shares["weights"] < alone["weights"] / 3


@pytest.mark.slow
class TestMeasuredMemory:
    def test_is_within_a_tenth_of_the_forecast(self, tmp_path):
        """Of one kind; `tests.benchmarks.memory_forecast` measures four, for three shapes."""
        make_model("6M", tmp_path / "base")
        spec = {
            "base": str(tmp_path / "base"),
            "tokens": 4096,
            "quantization": "nf4",
            "checkpointing": True,
            "work": str(tmp_path / "work"),
            "tight": True,
        }
        forecast = total(child("forecast", spec)["parts"])
        assert forecast == pytest.approx(child("measure", spec)["peak"], rel=0.1)


def real_model(setting):
    from transformers import AutoModelForCausalLM

    packed_attention.register()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[setting.plan.precision]
    return AutoModelForCausalLM.from_config(
        config_of(setting), dtype=dtype, attn_implementation="packed"
    )


def config_of(setting):
    return LlamaConfig(**json.loads((setting.base / "config.json").read_text()))


def bytes_of(tensors):
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())
