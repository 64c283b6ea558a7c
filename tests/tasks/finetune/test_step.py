"""What the key of a training run depends on."""

import pytest

from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe
from tasks.finetune import step as finetune_step
from tasks.finetune.step import FinetuneInputs
from tasks.runtime.context import RunContext
from tasks.storage.sources import resolve
from tasks.storage.store import open_store


@pytest.fixture
def context(tmp_path):
    return RunContext(store=str(tmp_path / "store"))


@pytest.fixture
def inputs(tmp_path, context):
    """Inputs of a training of next to nothing; give what differs."""
    base, other = tmp_path / "base", tmp_path / "other"
    base.mkdir()
    other.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    (other / "tokens.json").write_text("{}")
    artifact = open_store(context.store).put("any", other)

    def make(**changes):
        return FinetuneInputs(
            model=resolve(str(base), "model"),
            tokenizer=artifact,
            dataset=artifact,
            tokens=artifact,
            labels=(),
            lora=LoraRecipe(),
            quantization="none",
            training=TrainingRecipe(),
            ship="merged",
            head_modules=(),
            **{"plan": Plan(device="cpu", precision="fp32")} | changes,
        )

    return make


class TestKey:
    def test_includes_the_version_of_fused_kernels_if_the_plan_has_any(self, inputs, monkeypatch):
        monkeypatch.setattr(
            finetune_step, "library_versions", lambda names: dict.fromkeys(names, "0.8.5")
        )
        plain = Plan(device="cuda", precision="bf16")
        assert inputs(plan=plain).liger_version == ""
        assert inputs(plan=plain.model_copy(update={"kernels": "liger"})).liger_version == "0.8.5"
