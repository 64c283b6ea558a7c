"""The forecast step: the memory that training needs, and what follows for scoring."""

import pytest
from transformers import LlamaConfig

from tasks.plan.forecast_step import ForecastInputs, forecast, scoring_warnings
from tasks.plan.plan import make_plan
from tasks.storage.sources import resolve
from tests.tasks.plan.conftest import forecast_of, inspected, plan_inputs
from tests.tasks.samples import run_context


@pytest.fixture
def base(tmp_path):
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
    )
    config.save_pretrained(tmp_path / "base")
    # A model's folder must have weights; nothing reads them.
    (tmp_path / "base" / "model.safetensors").write_bytes(b"weights")
    return resolve(str(tmp_path / "base"), "model")


@pytest.fixture
def forecast_for(base, tmp_path):
    """The forecast of a small model on so many bytes of memory."""

    def run(memory):
        inputs = ForecastInputs(
            model=base,
            task="instruction",
            lora={},
            quantization="none",
            plan=make_plan(plan_inputs(task="instruction")),
            ship="adapter",
            checkpointing="auto",
            micro_batch_tokens=0,
            max_length=128,
            longest=128,
            most_tokens=1024,
            target_share=0.5,
            memory=memory,
            reserve=10**9,
            host_memory=memory,
            host_reserve=10**9,
            stored_bytes=4,
            hardware="",
        )
        return forecast.once(inputs, run_context(tmp_path))

    return run


class TestForecast:
    def test_of_a_small_model_fits_a_large_machine(self, forecast_for):
        found = forecast_for(64 * 10**9)
        assert not found.unknown and found.fits and not found.checkpointing
        assert (found.memory, found.reserve, found.longest) == (64 * 10**9, 10**9, 128)
        assert found.micro_batch_tokens == 1024

    def test_does_not_fit_a_machine_without_room(self, forecast_for):
        found = forecast_for(1_010_000_000)
        assert not found.fits and found.peak > 10_000_000


class TestScoring:
    def test_of_whole_models_that_do_not_fit_the_card_gives_a_warning(self):
        large = inspected(parameters=13 * 10**9, shape={"stored_bytes": 2})
        (warning,) = scoring_warnings(large, forecast_of())
        assert "whole models of 26.00 GB" in warning and "room for 22.00 GB" in warning
        assert not scoring_warnings(large, forecast_of(device="cpu"))
        assert not scoring_warnings(inspected(), forecast_of())
