"""Whole runs of language models: chat, completion and preference, on a tiny model."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import pytest
import yaml

from flows.cli import apply_setting
from flows.retrain import retrain
from tasks.contracts.recipe import Recipe
from tasks.release import deployment_log
from tasks.release.provenance import provenance_of
from tasks.runtime.gguf_converter import SCRIPT, VARIABLE, find_converter
from tasks.storage.objects import open_objects
from tasks.storage.store import Store
from tests.conftest import avoid_proxies
from tests.doubles.llm_judge import LlmJudgeServer
from tests.flows.conftest import report_of, task_states
from tests.tasks.base_model.gguf_files import write_gguf
from tests.tasks.samples import some_rows, write_jsonl


def questions(count: int) -> list[dict[str, str]]:
    """Rows of the construction FAQ, with their columns' own names."""
    package = Path(find_spec("zaragoza_construction_faq").submodule_search_locations[0])
    lines = (package / "data" / "faq-en.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{"q": row["q"], "a": row["a"][:200]} for row in rows][:count]


class Place:
    """A recipe for a language model, its data and its store, all in one folder."""

    def __init__(self, folder: Path, base: Path, task: str, rows: list[dict], **data: Any) -> None:
        self.folder, self.base, self.task, self.more = folder, base, task, data
        write_jsonl(folder / "data.jsonl", rows)

    def run(self, **changes: Any):
        """Run the flow; returns its final state."""
        data = {
            "name": "tiny",
            "task": self.task,
            "data": {"uri": str(self.folder / "data.jsonl"), **self.more},
            "model": {"uri": str(self.base)},
            "lora": {"r": 4, "dropout": 0},
            "training": {"epochs": 2, "max_length": 96, "learning_rate": 0.01, "batch_size": 8},
            "evaluation": {"slices": ["length"]},
            "gate": {"min_examples": 10, "margin": 0.1, "slice_veto": False},
            "publish": {"targets": [str(self.folder / "releases")]},
            "store": str(self.folder / "store"),
        }
        for path, value in changes.items():
            apply_setting(data, f"{path.replace('__', '.')}={value}")
        return retrain(Recipe.model_validate(data), return_state=True)

    @property
    def store(self) -> Store:
        return Store(open_objects(str(self.folder / "store")))

    def deployed(self, name: str = "tiny"):
        return deployment_log.deployed(self.store, name, "production")

    def provenance(self, name: str = "tiny") -> dict:
        """The deployed release's provenance."""
        return provenance_of(self.deployed(name).release, self.store)


@pytest.fixture
def chat(tmp_path, tiny_lm, prefect_env):
    columns = {"prompt": "q", "completion": "a"}
    return Place(tmp_path, tiny_lm, "instruction", questions(120), columns=columns)


@pytest.mark.slow
class TestChat:
    def test_is_released_then_up_to_date_then_trained_on_more(self, chat):
        state = chat.run(evaluation__generate_tokens=8)
        assert state.name == "Released", state.message
        report = report_of(state)
        assert (
            "## Training examples" in report and "▶ " in report and "· <|im_start|>user" in report
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
class TestGuardSet:
    def test_is_scored_beside_the_test_examples_and_may_veto(self, chat):
        guard = write_jsonl(
            chat.folder / "guard.jsonl", [{"text": r["text"]} for r in some_rows(40)]
        )
        settings = {"evaluation__guard__uri": str(guard), "training__epochs": 1}
        state = chat.run(**settings, gate__guard_margin=0.9)
        report = report_of(state)
        assert "40 examples, for completion" in report
        assert re.search(
            r"On the guard set, loss is [\d.]+ against [\d.]+ nats per token for the base model:",
            report,
        )
        made = chat.provenance()
        assert {"guard", "guard_evaluate", "guard_baseline"} <= set(made["steps"])
        assert made["sources"]["guard"]["uri"] == str(guard) and made["guard_metrics"]["loss"]
        released = chat.deployed().event.data.verdict
        assert [rule.passed for rule in released.rules if rule.slice == "guard set"] == [True]
        # The training is the same; only the gate's margin changes.
        strict = chat.run(**settings, name="other", gate__guard_margin=0.0001)
        assert strict.name == "Rejected", strict.message
        assert "no harm to the guard set" in strict.message
        assert task_states(strict)["finetune"] == "Cached"


class TestLlmJudge:
    @pytest.fixture
    def judge(self, monkeypatch):
        avoid_proxies(monkeypatch)
        monkeypatch.setenv("JUDGE_KEY", "sk-very-secret-0815")
        with LlmJudgeServer() as server:
            yield server

    def settings(self, judge):
        return {
            "evaluation__generate_tokens": 6,
            "evaluation__llm_judge__url": judge.url,
            "evaluation__llm_judge__model": "wise",
            "evaluation__llm_judge__api_key_env": "JUDGE_KEY",
            "training__epochs": 1,
        }

    @pytest.mark.slow
    def test_decides_if_the_gate_uses_it_and_is_asked_once(self, chat, judge):
        settings = self.settings(judge) | {
            "gate__metric": "preferred",
            "evaluation__llm_judge__max_examples": 12,
        }
        judge.rule = lambda first, second: "[[A]]"
        biased = chat.run(**settings)
        assert biased.name == "Rejected", biased.message
        assert "share of preferred answers better than the untrained base" in biased.message
        report = report_of(biased)
        assert "wise: preferred 0.5000, 0 wins, 12 ties (" in report
        count = len(judge.requests)
        assert 0 < count <= 24

        again = chat.run(**settings)
        assert task_states(again)["llm-judge"] == "Cached" and len(judge.requests) == count
        files = [file for file in chat.folder.rglob("*") if file.is_file()]
        assert not [file for file in files if b"very-secret" in file.read_bytes()]
        assert "very-secret" not in report

    def test_without_its_key_is_refused_before_training(self, chat, judge, monkeypatch):
        monkeypatch.delenv("JUDGE_KEY")
        state = chat.run(**self.settings(judge))
        assert state.name == "No access" and "JUDGE_KEY" in state.message
        assert task_states(state) == {}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra `benchmarks`")
class TestBenchmarks:
    def test_are_shown_beside_the_baseline(self, chat):
        from tests.tasks.evaluate.test_benchmark_program import ROWS
        from tests.tasks.samples import SHIPS

        folder = chat.folder / "own"
        folder.mkdir()
        (folder / "ships.yaml").write_text(yaml.safe_dump(SHIPS))
        write_jsonl(folder / "ships.jsonl", ROWS)
        state = chat.run(
            training__epochs=1,
            evaluation__benchmarks='["ships"]',
            evaluation__benchmark_folder=str(folder),
        )
        report = report_of(state)
        assert "## Benchmarks" in report and "| ships | acc |" in report
        assert task_states(state)["benchmarks"] == "Completed"
        made = chat.provenance()
        assert {"benchmarks", "benchmark_baseline"} <= set(made["steps"])
        assert (
            "acc" in made["benchmarks"]["ships"] and made["sources"]["benchmark_folder"]["digest"]
        )

    def test_with_an_unknown_name_are_refused_first(self, chat):
        state = chat.run(evaluation__benchmarks='["arc_easi"]')
        assert state.name == "Bad recipe", state.message
        assert "evaluation.benchmarks" in state.message and "'arc_easy'" in state.message
        assert task_states(state) == {}


@pytest.mark.slow
class TestCompletion:
    def test_a_model_of_news_is_trained_and_released(self, tmp_path, tiny_lm, prefect_env):
        rows = [{"text": row["text"]} for row in some_rows(200)]
        place = Place(tmp_path, tiny_lm, "completion", rows)
        state = place.run()
        assert state.name == "Released", state.message
        assert place.deployed().event.data.metrics["perplexity"] > 1


@pytest.mark.slow
class TestPreference:
    def test_a_model_of_pairs_is_trained_and_decided_on(self, tmp_path, tiny_lm, prefect_env):
        known = questions(160)
        rows = [{"prompt": row["q"], "chosen": row["a"], "rejected": "No."} for row in known]
        place = Place(tmp_path, tiny_lm, "preference", rows)
        state = place.run()
        assert state.name in ("Released", "Rejected"), state.message
        assert "accuracy" in report_of(state)


@pytest.mark.slow
class TestTwoProcesses:
    def test_train_the_same_model_as_one(self, chat):
        found = {}
        for name, count in (("one", 1), ("two", 2)):
            state = chat.run(name=name, plan__processes=count)
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
    return Place(tmp_path, base, "completion", rows)


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
        place = Place(tmp_path, tiny_lm, "instruction", [good] * 3)
        state = place.run()
        assert state.name == "Bad data"
        assert "data.jsonl:1" in state.message and "assistant" in state.message
