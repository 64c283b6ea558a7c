"""Harness: what is refused early, what belongs to the key, and what the report shows."""

from __future__ import annotations

import pytest

from tasks import harness as module
from tasks.contracts.artifact import Artifact, Benchmarked
from tasks.contracts.recipe import Recipe
from tasks.errors import BadRecipe, NotFound
from tasks.evaluate import ScoreInputs
from tasks.harness import check_harness, harness, harness_inputs, harness_markdown

ARTIFACT = Artifact(kind="model", digest="d" * 64, files=1, bytes=1, uri="")


def recipe(**evaluation) -> Recipe:
    return Recipe(
        name="tiny",
        task="instruction",
        data={"uri": "data.jsonl"},
        model={"uri": "model"},
        evaluation={"slices": ["length"], "harness": ["ships"], **evaluation},
    )


def scoring(**changes) -> ScoreInputs:
    return ScoreInputs(
        **{
            "kind": "merged",
            "model": ARTIFACT,
            "base": None,
            "quantization": "none",
            "labels": (),
            "seed": 1,
            "test_digest": "t",
            "dataset": ARTIFACT,
            "hardware": "",
            "batch_size": 4,
            "device": "cpu",
            **changes,
        }
    )


class TestEarly:
    def test_refused_where_it_is_not_installed(self, monkeypatch):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        with pytest.raises(BadRecipe, match=r"pip install 'burnish\[harness\]'"):
            check_harness(recipe())

    def test_not_missed_where_it_is_not_asked_for(self, monkeypatch):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        check_harness(recipe(harness=[]))

    def test_refused_where_its_folder_is_missing(self, monkeypatch, tmp_path):
        monkeypatch.setattr(module, "find_spec", lambda name: "there")
        with pytest.raises(NotFound):
            check_harness(recipe(harness_folder=str(tmp_path / "none")))


class TestTheKey:
    def test_is_of_the_models_and_the_task_files_content(self, tmp_path):
        folder = tmp_path / "own"
        folder.mkdir()
        (folder / "ships.yaml").write_text("task: ships")
        asked = recipe(harness_folder=str(folder))
        key = harness.key(harness_inputs(asked, scoring()))
        assert key == harness.key(harness_inputs(asked, scoring(batch_size=9, seed=2)))
        other = ARTIFACT.model_copy(update={"digest": "e" * 64})
        assert key != harness.key(harness_inputs(asked, scoring(model=other)))
        (folder / "ships.yaml").write_text("task: ships2")
        assert key != harness.key(harness_inputs(asked, scoring()))


class TestTheReport:
    def test_shows_the_baseline_beside_the_candidate(self):
        def of(value):
            return Benchmarked(
                artifact=ARTIFACT,
                results={"ships": {"f1/strict": value, "f1_stderr/strict": 0.0125}},
                examples={"ships": 9},
            )

        shown = harness_markdown(of(0.5), of(0.25))
        assert "| ships | f1/strict | 0.2500 ± 0.0125 | 0.5000 ± 0.0125 | 9 |" in shown
        assert "| ships | f1/strict |  | 0.5000 ± 0.0125 | 9 |" in harness_markdown(of(0.5), None)
