"""The forecast program: the micro-batch that fits, and what would help if none does."""

import pytest
from transformers import LlamaConfig

from tasks.contracts.jobs import ForecastJob
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe
from tasks.plan import forecast_program

BIG = {
    "8B": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    "70B": LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
}


class SilentReporter:
    def progress(self, **_):
        return True


@pytest.fixture
def forecast(tmp_path):
    """Forecasts the training of a large Llama on a card, with changes to the job."""

    def run(name, **changes):
        folder = tmp_path / name
        BIG[name].save_pretrained(folder)
        plan = Plan(
            device="cuda",
            precision="bf16",
            attention="packed",
            optimizer="paged_adamw_8bit",
            packing=True,
        )
        fields = {
            "base": folder,
            "lora": LoraRecipe(),
            "quantization": "nf4",
            "plan": plan,
            "ship": "adapter",
            "checkpointing": "auto",
            "micro_batch_tokens": 2048,
            "max_length": 2048,
            "longest_example": 2048,
            "step_tokens": 2048,
            "target_share": 0.5,
            "memory": 22 * 10**9,
            "host_memory": 60 * 10**9,
            "stored_bytes": 2,
        }
        return forecast_program.main(ForecastJob(**fields | changes), SilentReporter())

    return run


def total(parts):
    return sum(parts.values())


class TestALargeModel:
    def test_of_8_billion_weights_fits_24_gb_with_qlora(self, forecast):
        found = forecast("8B")
        assert found.fits and found.micro_batch_tokens == 2048
        # 7 billion linear weights of half a byte, and a billion of two.
        assert found.parts["weights"] == pytest.approx(5.6e9, rel=0.02)
        assert found.trained_parameters == 41_943_040

    def test_gets_as_many_tokens_as_fit(self, forecast):
        found = forecast("8B", micro_batch_tokens=0, step_tokens=60_000, checkpointing="on")
        assert found.fits and 4096 < found.micro_batch_tokens < 60_000
        assert 0.9 * 22e9 < total(found.parts) <= 22e9

    def test_is_checkpointed_only_if_it_must_be(self, forecast):
        assert forecast("8B").checkpointing is True
        assert forecast("8B", memory=60 * 10**9).checkpointing is False

    def test_of_70_billion_does_not_fit_at_all(self, forecast):
        found = forecast("70B")
        assert not found.fits and not any(each.fits for each in found.remedies)
        assert found.parts["weights"] > 35e9

    @pytest.mark.slow
    def test_that_does_not_fit_gets_remedies(self, forecast):
        found = forecast("8B", quantization="none", checkpointing="off", memory=15 * 10**9)
        assert not found.fits
        remedies = {each.change: each for each in found.remedies}
        together = "quantization: nf4 and plan.checkpointing: on and lora.dropout: 0"
        assert remedies[together].fits
        assert {"quantization: nf4", "plan.checkpointing: on"} <= set(remedies)
        peaks = [each.peak for each in found.remedies]
        assert min(peaks) == remedies[together].peak

    @pytest.mark.slow
    def test_may_fit_with_shorter_examples(self, forecast):
        found = forecast(
            "8B",
            longest_example=60_000,
            max_length=60_000,
            micro_batch_tokens=0,
            step_tokens=60_000,
        )
        last = found.remedies[-1]
        assert last.fits and "training.max_length: " in last.change

    def test_is_merged_in_host_memory_if_the_card_is_too_small(self, forecast):
        found = forecast("8B", ship="merged")
        assert found.fits
        # 8 billion weights of two bytes, 42 million of four, twice, and a layer of 59 million.
        needed = 2 * 8.03e9 + 8 * 41_943_040 + 13 * 4096 * 14336
        assert found.merge_host_memory == pytest.approx(needed, rel=0.001)
        lasting = found.parts["weights"] + found.parts["quantization constants"]
        assert lasting < found.merge_memory < lasting + 3.1 * 4096 * 14336
        assert found.merge_memory < total(found.parts)

    @pytest.mark.parametrize("ship", ["merged", "adapter"])
    def test_fits_only_if_the_machine_has_room_to_merge_it(self, forecast, ship):
        found = forecast("8B", ship=ship, host_memory=16 * 10**9)
        assert found.fits == (ship == "adapter") and not found.remedies
        assert total(found.parts) < 22e9

    def test_stored_in_more_bits_needs_more_host_memory(self, forecast):
        few, many = (forecast("8B", ship="merged", stored_bytes=each) for each in (2, 4))
        assert many.merge_host_memory - few.merge_host_memory == pytest.approx(16.06e9, rel=0.1)

    def test_that_is_not_quantized_is_not_merged_on_the_card(self, forecast):
        found = forecast("8B", ship="merged", quantization="none", memory=80 * 10**9)
        assert found.merge_memory == 0 and found.merge_host_memory > 16e9


class TestAModelThatCannotBeTraced:
    def test_has_an_unknown_forecast_with_the_reason(self, tmp_path, forecast, monkeypatch):
        def fails(_):
            raise RuntimeError("no such kernel")

        monkeypatch.setattr(forecast_program, "peak", fails)
        assert forecast("8B").unknown == "RuntimeError: no such kernel"
