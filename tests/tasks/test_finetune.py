"""What training makes besides the weights: the GGUF file that the recipe may ask for."""

from pathlib import Path

import pytest

from tasks import finetune as module
from tasks.cache import Room
from tasks.contracts.artifact import Plan
from tasks.contracts.training import LoraRecipe, TrainingRecipe
from tasks.converter import VARIABLE, converter_digest
from tasks.data.sources import resolve
from tasks.errors import BadModel
from tasks.finetune import FinetuneInputs, finetune
from tasks.store import open_store

RESULT = {
    "metrics": {},
    "history": (),
    "best_epoch": 1.0,
    "steps": 1,
    "trained_parameters": 1,
}


@pytest.fixture
def room(tmp_path):
    return Room(store=str(tmp_path / "store"))


@pytest.fixture
def inputs(tmp_path, room):
    """Inputs of a training of next to nothing; give what differs."""
    base, other = tmp_path / "base", tmp_path / "other"
    base.mkdir()
    other.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    (other / "tokens.json").write_text("{}")
    artifact = open_store(room.store).put("any", other)

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

    def run_program(name, job, **options):
        ran.append((name.rpartition(".")[2], job))
        if job.get("out"):
            Path(job["out"]).mkdir(exist_ok=True)
            (Path(job["out"]) / ran[-1][0]).write_text("")
        return RESULT if ran[-1][0] == "train" else {}

    monkeypatch.setattr(module, "run_program", run_program)
    return ran


class TestTheGgufFile:
    def test_is_tried_before_training_and_made_after_it(self, inputs, room, programs):
        made = finetune.work(inputs(gguf="q8_0"), room)
        assert [name for name, _ in programs] == ["export_gguf", "train", "export_gguf"]
        trial, training, export = (job for _, job in programs)
        assert "model" not in trial and trial["base"] == training["base"]
        assert export["model"] == export["out"] == training["out"]
        assert trial["type"] == export["type"] == "q8_0"
        folder = open_store(room.store).open(made.artifact)
        assert sorted(path.name for path in folder.iterdir()) == ["export_gguf", "train"]

    def test_is_not_made_unless_asked_for(self, inputs, room, programs):
        finetune.work(inputs(), room)
        assert [name for name, _ in programs] == ["train"]

    def test_that_cannot_be_made_costs_no_training(self, inputs, room, programs, monkeypatch):
        def refuse(name, job, **options):
            assert name == "tasks.programs.export_gguf"
            raise BadModel("model.gguf", "a", "b", "c")

        monkeypatch.setattr(module, "run_program", refuse)
        with pytest.raises(BadModel):
            finetune.work(inputs(gguf="f16"), room)


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
        monkeypatch.setattr(module, "library_versions", lambda names: dict.fromkeys(names, "0.8.5"))
        plain = Plan(device="cuda", precision="bf16")
        assert inputs(plan=plain).fused == ""
        assert inputs(plan=plain.model_copy(update={"kernels": "liger"})).fused == "0.8.5"
