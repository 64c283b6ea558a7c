"""Scoring in whole runs of language models: guard set, LLM judge and benchmarks."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import yaml

from tests.conftest import avoid_proxies
from tests.doubles.llm_judge import LlmJudgeServer
from tests.flows.conftest import report_of, task_states
from tests.tasks.evaluate.samples import SHIP_ROWS
from tests.tasks.samples import SHIPS, some_rows, write_jsonl


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
        folder = chat.folder / "own"
        folder.mkdir()
        (folder / "ships.yaml").write_text(yaml.safe_dump(SHIPS))
        write_jsonl(folder / "ships.jsonl", SHIP_ROWS)
        state = chat.run(
            training__epochs=1,
            evaluation__benchmarks='["ships"]',
            evaluation__benchmark_folder=str(folder),
        )
        report = report_of(state)
        assert "<summary>Benchmarks</summary>" in report and "| ships | acc |" in report
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
