"""The inspect step stores the tokenizer, and inspects a model once."""

from __future__ import annotations

from tasks.base_model import inspect_step
from tasks.base_model.inspect_step import InspectInputs, inspect_model
from tasks.storage.sources import resolve
from tasks.storage.store import open_store
from tests.tasks.samples import run_context


class TestInspectModel:
    def test_stores_the_tokenizer_and_runs_once(self, tiny_base, tmp_path, monkeypatch):
        context = run_context(tmp_path)
        inputs = InspectInputs(model=resolve(str(tiny_base), "model"), labels=("a", "b"))
        found = inspect_model.once(inputs, context)
        assert (found.artifact.kind, found.pad_token) == ("tokenizer", "[PAD]")
        assert "tokenizer.json" in {
            entry.path for entry in open_store(context.store).manifest(found.artifact).files
        }
        monkeypatch.setattr(inspect_step, "run_program", None)
        assert inspect_model.once(inputs, context) == found

    def test_another_chat_template_has_another_key(self, tiny_lm):
        inputs = InspectInputs(model=resolve(str(tiny_lm), "model"), labels=(), task="instruction")
        chatml = inputs.model_copy(update={"chat_template": "chatml"})
        assert inspect_model.key(inputs) != inspect_model.key(chatml)
