"""What training makes besides the weights: the GGUF file that the recipe may ask for."""

import pytest

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import Done, ExportGgufResult, FinetuneResult
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe
from tasks.finetune import step as finetune_step
from tasks.finetune.step import FinetuneInputs, finetune
from tasks.runtime.context import RunContext
from tasks.runtime.gguf_converter import VARIABLE, converter_digest
from tasks.runtime.run_program import program_name
from tasks.storage.sources import resolve
from tasks.storage.store import open_store

RESULTS = {
    "finetune": FinetuneResult(
        metrics={}, history=(), best_epoch=1.0, steps=1, trained_parameters=1, warnings=()
    ),
    "finetune-gguf-check": Done(),
    "finetune-gguf-export": ExportGgufResult(file="model-q8_0.gguf", bytes=0),
}


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


@pytest.fixture
def programs(monkeypatch):
    """The programs that are run, in order, each with its job; they write one file at most."""
    ran = []

    def run_program(module, job, result, **options):
        name = program_name(module)
        ran.append((name, job))
        if hasattr(job, "out"):
            job.out.mkdir(exist_ok=True)
            (job.out / name).write_text("")
        assert isinstance(RESULTS[name], result)
        return RESULTS[name]

    monkeypatch.setattr(finetune_step, "run_program", run_program)
    return ran


class TestTheGgufFile:
    def test_is_tried_before_training_and_made_after_it(self, inputs, context, programs):
        made = finetune.work(inputs(gguf="q8_0"), context)
        assert [name for name, _ in programs] == [
            "finetune-gguf-check",
            "finetune",
            "finetune-gguf-export",
        ]
        check, training, export = (job for _, job in programs)
        assert check.base == training.base
        assert export.model == export.out == training.out
        assert check.file_type == export.file_type == "q8_0"
        folder = open_store(context.store).open(made.artifact)
        assert sorted(path.name for path in folder.iterdir()) == [
            "finetune",
            "finetune-gguf-export",
        ]

    def test_is_not_made_unless_asked_for(self, inputs, context, programs):
        finetune.work(inputs(), context)
        assert [name for name, _ in programs] == ["finetune"]

    def test_that_cannot_be_made_costs_no_training(self, inputs, context, programs, monkeypatch):
        def refuse(module, job, result, **options):
            assert module == "tasks.finetune.gguf_check_program"
            raise BadModel("model.gguf", "a", "b", "c")

        monkeypatch.setattr(finetune_step, "run_program", refuse)
        with pytest.raises(BadModel):
            finetune.work(inputs(gguf="f16"), context)


class TestTheKey:
    def test_names_the_converter_where_it_is_used(self, inputs, monkeypatch, tmp_path):
        asked = inputs(gguf="f16")
        assert asked.converter == converter_digest() != ""
        other = tmp_path / "convert_hf_to_gguf.py"
        other.write_text("")
        monkeypatch.setenv(VARIABLE, str(other))
        assert finetune.key(inputs(gguf="f16")) != finetune.key(asked)

    def test_is_the_same_with_any_converter_where_it_is_not(self, inputs, monkeypatch, tmp_path):
        before = finetune.key(inputs())
        monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
        assert finetune.key(inputs()) == before

    def test_differs_by_type(self, inputs):
        assert finetune.key(inputs(gguf="f16")) != finetune.key(inputs(gguf="q8_0"))

    def test_has_the_version_of_fused_kernels_where_there_are_any(self, inputs, monkeypatch):
        monkeypatch.setattr(
            finetune_step, "library_versions", lambda names: dict.fromkeys(names, "0.8.5")
        )
        plain = Plan(device="cuda", precision="bf16")
        assert inputs(plan=plain).fused == ""
        assert inputs(plan=plain.model_copy(update={"kernels": "liger"})).fused == "0.8.5"
