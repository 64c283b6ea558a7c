"""Stage inputs: what is built from a recipe, and that nothing else reads one."""

from __future__ import annotations

import ast
from pathlib import Path

import tasks
from flows import stage_inputs
from tasks.contracts.candidate import Planned, Prepared
from tasks.contracts.plan import Plan
from tasks.contracts.recipe import Recipe
from tasks.plan.plan import make_plan
from tests.tasks.plan.conftest import (
    LIGER,
    artifact,
    gpu_machine,
    inspected,
    loaded,
    machine,
    plan_inputs,
    source,
    tokenized,
)

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

    def inputs(self, tokens=None, plan=None, declared=None, on=None, **changes):
        prepared = Prepared(
            machine=on or machine(),
            data=source(),
            model=source(),
            loaded=self.DATA,
            inspected=inspected(),
            tokenized=tokens or tokenized(),
        )
        plan = plan or make_plan(plan_inputs(task="instruction"))
        return stage_inputs.forecast_inputs(recipe(plan=declared or {}, **changes), prepared, plan)

    def test_hold_the_longest_sequence_and_a_large_step(self):
        inputs = self.inputs()
        assert (inputs.longest, inputs.most_tokens, inputs.target_share) == (128, 1024, 0.5)
        assert self.inputs(task="preference").longest == 256

    def test_are_the_same_for_a_few_rows_more(self):
        more = self.inputs(tokenized(tokens=6100, target_tokens=3049))
        assert more.key_part() == self.inputs().key_part()

    def test_hold_the_memory_that_the_recipe_declares(self):
        assert self.inputs(declared={"device_memory_gb": 1.2}).memory == 1_200_000_000

    def test_belong_to_a_kind_of_processor_but_not_to_one_beside_a_card(self):
        other = self.inputs(on=machine(kind="EPYC, 64 cores"))
        assert other.key_part() != self.inputs().key_part()
        plan = make_plan(plan_inputs(task="instruction"))
        assert self.inputs(plan=plan.model_copy(update={"device": "cuda"})).hardware == ""


class TestFinetuneInputs:
    def inputs(self, **plan):
        planned = Planned(
            machine=gpu_machine(libraries=LIGER),
            data=source(),
            model=source(),
            loaded=loaded(),
            inspected=inspected(),
            tokenized=tokenized(),
            plan=Plan(device="cuda", precision="bf16", **plan),
        )
        return stage_inputs.finetune_inputs(recipe(), planned)

    def test_hold_the_version_of_liger_of_the_machine_that_trains(self):
        assert self.inputs(kernels="liger").liger_version == LIGER["liger-kernel"]
        assert self.inputs().liger_version == ""


class TestGuardInputs:
    def test_are_none_without_a_guard_set(self):
        assert stage_inputs.guard_inputs(recipe(), artifact("tokenizer")) is None
