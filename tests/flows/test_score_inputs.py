"""The inputs of scoring: what their keys cover."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows import score_inputs
from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import NotFound
from tasks.contracts.recipe import Recipe
from tasks.evaluate.benchmark_step import run_benchmarks
from tasks.evaluate.step import ScoreInputs
from tests.flows.test_stage_inputs import recipe
from tests.tasks.samples import SHIPS


class TestBenchmarkInputs:
    MODEL = Artifact(kind="model", digest="d" * 64, files=1, bytes=1, uri="")

    def scoring(self, **changes) -> ScoreInputs:
        facts = {
            "kind": "merged",
            "model": self.MODEL,
            "base": None,
            "quantization": "none",
            "labels": (),
            "seed": 1,
            "test_digest": "t",
            "dataset": self.MODEL,
            "hardware": "",
            "batch_size": 4,
            "device": "cpu",
        }
        return ScoreInputs(**facts | changes)

    def with_benchmarks(self, folder) -> Recipe:
        wanted = {"slices": ["length"], "benchmarks": ["ships"], "benchmark_folder": str(folder)}
        return recipe(evaluation=wanted)

    def test_are_none_without_benchmarks(self):
        assert score_inputs.benchmark_tasks(recipe()) is None

    def test_a_folder_that_is_missing_is_not_found(self, tmp_path):
        with pytest.raises(NotFound):
            score_inputs.benchmark_tasks(self.with_benchmarks(tmp_path / "none"))

    def test_their_key_covers_the_model_and_the_content_of_the_task_files(self, tmp_path):
        folder = tmp_path / "own"
        folder.mkdir()
        write_tasks(folder)
        wanted = self.with_benchmarks(folder)

        def key(**changes):
            tasks = score_inputs.benchmark_tasks(wanted)
            inputs = score_inputs.benchmark_inputs(wanted, tasks, self.scoring(**changes))
            return run_benchmarks.key(inputs)

        first = key()
        assert first == key(batch_size=9, seed=2)
        assert first != key(model=self.MODEL.model_copy(update={"digest": "e" * 64}))
        write_tasks(folder, target_delimiter=" ")
        described = key()
        (folder / "ships.jsonl").write_text("{}")
        assert len({first, described, key()}) == 3


def write_tasks(folder: Path, **changes) -> None:
    """Write a task file and its data."""
    (folder / "ships.yaml").write_text(yaml.safe_dump({**SHIPS, **changes}))
    (folder / "ships.jsonl").write_text('{"question": "A", "choices": ["b", "c"], "label": 0}\n')
