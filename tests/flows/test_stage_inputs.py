"""Stage inputs: what is built from a recipe, and that nothing else reads one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

import tasks
from flows import stage_inputs
from tasks.contracts.artifacts import Artifact
from tasks.contracts.candidate import Prepared
from tasks.contracts.errors import NotFound
from tasks.contracts.recipe import Recipe
from tasks.evaluate.benchmark_step import run_benchmarks
from tasks.evaluate.step import ScoreInputs
from tasks.plan.plan import make_plan
from tests.tasks.plan.conftest import (
    artifact,
    inspected,
    loaded,
    no_gpu,
    plan_inputs,
    source,
    tokenized,
)
from tests.tasks.samples import SHIPS

__all__ = ["no_gpu"]

TASKS = Path(tasks.__file__).parent


def recipe(**changes) -> Recipe:
    data = {
        "name": "r",
        "task": "instruction",
        "data": {"uri": "d"},
        "model": {"uri": "m"},
        "training": {"max_length": 128, "batch_size": 8, "epochs": 2},
        "evaluation": {"slices": ["length"]},
    }
    return Recipe.model_validate(data | changes)


class TestTheRecipe:
    def test_is_imported_by_no_stage(self):
        importing = [
            str(file.relative_to(TASKS.parent))
            for file in sorted(TASKS.rglob("*.py"))
            if file.parent.name != "contracts" and imports_recipe(file)
        ]
        assert importing == []

    def test_is_noticed_however_it_is_imported(self, tmp_path):
        file = tmp_path / "stage.py"
        for line in (
            "from tasks.contracts.recipe import Recipe",
            "import tasks.contracts.recipe as r",
            "def f():\n    from tasks.contracts import recipe",
        ):
            file.write_text(line)
            assert imports_recipe(file)
        file.write_text("from tasks.contracts.recipe_data import DataRecipe")
        assert not imports_recipe(file)


def imports_recipe(file: Path) -> bool:
    """Whether a module imports `tasks.contracts.recipe`, also within a function."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return "tasks.contracts.recipe" in names


class TestForecastInputs:
    DATA = loaded(train=80, validation=10, test=10)

    def inputs(self, tokens=None, plan=None, declared=None, **changes):
        prepared = Prepared(
            data=source(),
            model=source(),
            loaded=self.DATA,
            inspected=inspected(),
            tokenized=tokens or tokenized(),
        )
        plan = plan or make_plan(plan_inputs(task="instruction"))
        return stage_inputs.forecast_inputs(recipe(plan=declared or {}, **changes), prepared, plan)

    def test_hold_the_longest_sequence_and_a_large_step(self, no_gpu):
        inputs = self.inputs()
        assert (inputs.longest, inputs.most_tokens, inputs.target_share) == (128, 1024, 0.5)
        assert self.inputs(task="preference").longest == 256

    def test_are_the_same_for_a_few_rows_more(self, no_gpu):
        more = self.inputs(tokenized(tokens=6100, target_tokens=3049))
        assert more.key_part() == self.inputs().key_part()

    def test_hold_the_memory_that_the_recipe_declares(self, no_gpu):
        assert self.inputs(declared={"device_memory_gb": 1.2}).memory == 1_200_000_000

    def test_belong_to_a_kind_of_processor_but_not_to_one_beside_a_card(self, monkeypatch, no_gpu):
        found = []
        for cores in (2, 64):
            monkeypatch.setattr(
                stage_inputs, "device_kind", lambda _, cores=cores: f"EPYC, {cores} cores"
            )
            found.append(self.inputs().key_part())
        assert found[0] != found[1]
        plan = make_plan(plan_inputs(task="instruction"))
        assert self.inputs(plan=plan.model_copy(update={"device": "cuda"})).hardware == ""


class TestGuardInputs:
    def test_are_none_without_a_guard_set(self):
        assert stage_inputs.guard_inputs(recipe(), artifact("tokenizer")) is None


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
        assert stage_inputs.benchmark_tasks(recipe()) is None

    def test_a_folder_that_is_missing_is_not_found(self, tmp_path):
        with pytest.raises(NotFound):
            stage_inputs.benchmark_tasks(self.with_benchmarks(tmp_path / "none"))

    def test_their_key_covers_the_model_and_the_content_of_the_task_files(self, tmp_path):
        folder = tmp_path / "own"
        folder.mkdir()
        write_tasks(folder)
        wanted = self.with_benchmarks(folder)

        def key(**changes):
            tasks = stage_inputs.benchmark_tasks(wanted)
            inputs = stage_inputs.benchmark_inputs(wanted, tasks, self.scoring(**changes))
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
