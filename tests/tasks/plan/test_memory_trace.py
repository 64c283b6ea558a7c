"""A training step without memory: parts that are known otherwise, what changes them and how, and
what is measured."""

import json

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config

from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe
from tasks.kernels import packed_attention
from tasks.models import causal
from tasks.plan import memory_trace
from tasks.plan.memory_tracker import ACTIVATIONS, TRANSIENT, MemoryTracker
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
    """A setting of a small Llama; give what differs."""

    def make(config=None, plan=None, lora=None, **changes):
        folder = tmp_path / "base"
        (config or LlamaConfig(**SMALL)).save_pretrained(folder)
        settled = {"device": "cpu", "precision": "fp32", "attention": "packed", "packing": True}
        options = {
            "base": folder,
            "lora": LoraRecipe(**{"r": 8, "dropout": 0.0, **(lora or {})}).model_dump(mode="json"),
            "quantization": "none",
            "plan": Plan(**settled | (plan or {})).model_dump(mode="json"),
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


class TestALedger:
    def test_has_what_is_there_at_once(self):
        ledger = MemoryTracker()
        with ledger:
            ledger.begin("forward")
            kept = torch.ones(100)
            passing = [torch.ones(1000) for _ in range(2)]
            passing.pop()
            del passing
            ledger.begin("backward")
            torch.ones(10)
        peaks = ledger.peaks("forward", "backward")
        assert peaks["forward"] == {ACTIVATIONS: 400, TRANSIENT: 8000}
        assert total(peaks["backward"]) <= 400 + 40
        del kept

    def test_counts_memory_once_however_often_it_is_looked_at(self):
        ledger = MemoryTracker()
        with ledger:
            ledger.begin("forward")
            one = torch.ones(8, 8)
            views = [one.t(), one.view(-1), one[2:]]
            ledger.begin("backward")
        assert ledger.peaks("forward", "backward")["forward"] == {ACTIVATIONS: 256}
        del views

    def test_knows_what_kernels_need_besides(self):
        def space(_):
            return 10_000

        ledger = MemoryTracker({torch.ops.aten.mm.default: space})
        with ledger:
            ledger.begin("forward")
            torch.mm(torch.ones(4, 4), torch.ones(4, 4))
            ledger.begin("backward")
        assert total(ledger.peaks("forward", "backward")["forward"]) == 10_000 + 3 * 64


class TestTheParts:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_that_last_are_those_of_the_real_model(self, setting, precision):
        asked = setting(plan={"precision": precision})
        model = causal.attach_lora(real_model(asked), asked.lora, 0)
        frozen = [each for each in model.parameters() if not each.requires_grad]
        trained = [each for each in model.parameters() if each.requires_grad]
        parts = memory_trace.peak(asked)
        buffers = bytes_of(model.buffers())
        assert parts["weights"] == bytes_of(frozen) + buffers
        assert parts["adapters"] == bytes_of(trained)
        assert parts["quantization constants"] == 0
        # Two numbers a weight, and the step count of each tensor.
        assert parts["optimizer"] == 2 * bytes_of(trained) + 4 * len(trained)

    def test_of_a_quantised_model_are_those_of_the_paper(self, setting):
        plain, quantised = (
            memory_trace.peak(setting(plan={"precision": "bf16"}, quantization=kind))
            for kind in ("none", "nf4")
        )
        linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160)
        assert plain["weights"] - quantised["weights"] == round(1.5 * linear)
        # A byte for each block of 64, four for each 256 of them and what is left over, two tables.
        least = linear / 64 + linear / 64 / 256 * 4
        assert least < quantised["quantization constants"] < least + 14 * (4 * 272 + 8)

    def test_of_an_8_bit_optimizer_are_two_bytes_a_weight(self, setting):
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

    def test_of_gradients_lasts_where_they_accumulate(self, setting):
        once, often = (memory_trace.peak(setting(accumulates=each)) for each in (False, True))
        assert often["gradients"] >= often["adapters"] > once["gradients"]

    def test_of_many_layers_is_told_from_few(self, setting):
        config = LlamaConfig(**SMALL | {"num_hidden_layers": 8})
        for checkpointing in (False, True):
            asked = setting(config, checkpointing=checkpointing)
            whole = max(total(parts) for parts in memory_trace.trace(asked).values())
            parts = memory_trace.peak(asked)
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
    def test_of_other_architectures_is_told(self, setting, config, quantization):
        plan = {} if config.model_type != "gemma2" else {"packing": False, "attention": "eager"}
        try:
            parts = memory_trace.peak(setting(config, plan=plan, quantization=quantization))
        except packed_attention.UnsupportedAttention:
            pytest.skip("packed attention is not for this one")
        assert parts["weights"] and parts["activations"]

    def test_of_one_of_several_processes_is_less_where_they_share_the_model(self, setting):
        alone = memory_trace.peak(setting())
        copies, shares = (
            memory_trace.peak(setting(plan={"world_size": 4, "sharding": each}))
            for each in ("ddp", "fsdp")
        )
        assert total(copies) >= total(alone)
        assert shares["weights"] < alone["weights"] / 3


@pytest.mark.slow
class TestWhatIsMeasured:
    # All four, of three shapes: `tests.benchmarks.memory_forecast`.
    @pytest.mark.parametrize(("quantization", "checkpointing"), [("none", False), ("nf4", True)])
    def test_is_within_a_tenth_of_what_was_told(self, tmp_path, quantization, checkpointing):
        make_model("6M", tmp_path / "base")
        spec = {
            "base": str(tmp_path / "base"),
            "tokens": 4096,
            "quantization": quantization,
            "checkpointing": checkpointing,
            "work": str(tmp_path / "work"),
            "tight": True,
        }
        told = total(child("forecast", spec)["parts"])
        assert told == pytest.approx(child("measure", spec)["peak"], rel=0.1)


def real_model(asked):
    from transformers import AutoModelForCausalLM

    packed_attention.register()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[asked.plan["precision"]]
    return AutoModelForCausalLM.from_config(
        asked_config(asked), dtype=dtype, attn_implementation="packed"
    )


def asked_config(asked):
    return LlamaConfig(**json.loads((asked.base / "config.json").read_text()))


def bytes_of(tensors):
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())
