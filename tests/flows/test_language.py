"""Whole runs of language models: chat, completion and preference, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from string import ascii_letters, digits

import pytest

from tasks.runtime.gguf_converter import SCRIPT, VARIABLE, find_converter
from tests.flows.conftest import report_of, task_states
from tests.flows.language_place import LanguagePlace, questions
from tests.tasks.base_model.gguf_files import write_gguf
from tests.tasks.samples import some_rows, write_jsonl


@pytest.mark.slow
class TestChat:
    def test_is_released_then_up_to_date_then_trained_on_more(self, chat):
        state = chat.run(evaluation__generate_tokens=8)
        assert state.name == "Released", state.message
        report = report_of(state)
        assert (
            "<summary>Training examples</summary>" in report
            and "▶ " in report
            and "· <|im_start|>user" in report
        )
        assert "| question | reference | baseline | candidate |" in report
        first = chat.deployed()
        assert {"loss", "perplexity", "rouge_l"} <= set(first.event.data.metrics)

        again = chat.run(evaluation__generate_tokens=8)
        assert again.name == "Up to date", again.message
        assert task_states(again)["finetune"] == "Cached"

        write_jsonl(chat.folder / "data.jsonl", questions(160))
        more = chat.run(evaluation__generate_tokens=8)
        assert more.name in ("Released", "Rejected"), more.message
        assert task_states(more)["finetune"] == "Completed"

    def test_an_adapter_on_a_quantized_base_is_scored_as_it_ships(self, chat):
        state = chat.run(model__ship="adapter", quantization="nf4", training__epochs=1)
        assert state.name == "Released", state.message
        files = {file.name for file in (chat.folder / "releases").rglob("*") if file.is_file()}
        assert {"adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"} <= files


@pytest.mark.slow
@pytest.mark.skipif(not find_converter(), reason="needs the converter")
class TestGgufExport:
    def test_ships_beside_the_model_and_is_repeated_without_training(self, chat):
        settings = {"training__epochs": 1, "gate__margin": 0.9, "model__gguf": "q8_0"}
        assert chat.run(**settings).name == "Released"
        release = chat.deployed().release
        files = {file.name for file in Path(release.publications[0].uri).iterdir()}
        assert {"model.safetensors", "model-q8_0.gguf", "Modelfile"} <= files
        assert chat.provenance()["steps"]["gguf-export"]["artifact"] == release.gguf.digest

        file = chat.store.open(release.gguf) / "model-q8_0.gguf"
        file.write_bytes(file.read_bytes()[:-1])
        again = chat.run(**settings)
        assert again.name == "Up to date", again.message
        states = task_states(again)
        assert (states["finetune"], states["gguf-export"]) == ("Cached", "Completed")
        assert chat.store.holds(release.gguf)

        other = chat.run(**settings | {"model__gguf": "f16"})
        assert other.name == "Released", other.message
        assert task_states(other)["finetune"] == "Cached"
        assert chat.deployed().release.artifact == release.artifact

    def test_that_is_impossible_is_refused_before_training(self, chat, monkeypatch, tmp_path):
        # Its sources name the architecture, but it cannot convert any model.
        script = tmp_path / SCRIPT
        script.write_text('raise SystemExit("LlamaForCausalLM")')
        monkeypatch.setenv(VARIABLE, str(script))
        state = chat.run(model__gguf="f16")
        assert state.is_failed() and "model.gguf" in state.message
        assert "finetune" not in task_states(state)


@pytest.mark.slow
class TestCompletion:
    def test_a_model_of_news_is_trained_and_released(self, tmp_path, tiny_lm, prefect_env):
        rows = [{"text": row["text"]} for row in some_rows(200)]
        place = LanguagePlace(tmp_path, tiny_lm, "completion", rows)
        state = place.run()
        assert state.name == "Released", state.message
        assert place.deployed().event.data.metrics["perplexity"] > 1


@pytest.mark.slow
class TestPreference:
    def test_a_model_of_pairs_is_trained_and_decided_on(self, tmp_path, tiny_lm, prefect_env):
        known = questions(160)
        rows = [{"prompt": row["q"], "chosen": row["a"], "rejected": "No."} for row in known]
        place = LanguagePlace(tmp_path, tiny_lm, "preference", rows)
        state = place.run()
        assert state.name in ("Released", "Rejected"), state.message
        assert "accuracy" in report_of(state)


@pytest.mark.slow
class TestTwoProcesses:
    def test_train_the_same_model_as_one(self, chat):
        found = {}
        for name, count in (("one", 1), ("two", 2)):
            state = chat.run(name=name, plan__processes=count, training__epochs=1)
            assert state.name == "Released", state.message
            assert f"- world_size: {count}, for the recipe says so" in report_of(state)
            found[name] = chat.provenance(name)
            assert found[name]["plan"]["world_size"] == count
        one, two = (chat.deployed(name).event.data for name in ("one", "two"))
        # Each step averages the same tokens, but sums them in another order.
        assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-3)
        keys = {made["steps"]["finetune"]["key"] for made in found.values()}
        assert len(keys) == 2
        assert len({made["steps"]["tokenize"]["key"] for made in found.values()}) == 1


@pytest.fixture
def gguf(tmp_path, prefect_env):
    """A place whose base model is a GGUF file."""
    # transformers adds the first one if it is missing.
    tokens = ("<|endoftext|>", *ascii_letters, *digits, *".,'", "Ġ", "ab")
    base = write_gguf(tmp_path / "m.gguf", tokens=tokens)
    rows = [{"text": row["text"]} for row in some_rows(200)]
    return LanguagePlace(tmp_path, base, "completion", rows)


class TestAGgufBase:
    def test_is_refused_if_an_adapter_shall_ship(self, gguf):
        state = gguf.run(model__ship="adapter")
        assert state.name == "Bad recipe", state.message
        assert "model.ship" in state.message and "GGUF" in state.message
        assert task_states(state) == {}

    @pytest.mark.slow
    def test_is_in_the_report_and_in_the_provenance(self, gguf):
        state = gguf.run(training__max_length=48, training__epochs=1)
        assert state.name == "Released", state.message
        assert "| gguf | done in " in report_of(state)
        assert "LlamaForCausalLM in float32" in report_of(state)
        assert gguf.provenance()["steps"]["gguf"]["artifact"]


class TestRefusals:
    def test_a_conversation_without_an_answer_is_named(self, tmp_path, tiny_lm, prefect_env):
        good = {"messages": [{"role": "user", "content": "Hi"}]}
        place = LanguagePlace(tmp_path, tiny_lm, "instruction", [good] * 3)
        state = place.run()
        assert state.name == "Bad data"
        assert "data.jsonl:1" in state.message and "assistant" in state.message
