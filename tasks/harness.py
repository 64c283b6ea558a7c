"""Harness: what tasks of lm-evaluation-harness say of candidate and baseline, for people to read.

It is no part of the gate: such scores move for many reasons, and most are of other abilities than
those that are trained.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import orjson

from tasks.cache import Room, step
from tasks.contracts.artifact import Artifact, Benchmarked, Source
from tasks.contracts.base import Contract
from tasks.contracts.recipe import Recipe
from tasks.data.sources import fetch_folder, resolve
from tasks.errors import BadRecipe
from tasks.evaluate import ScoreInputs
from tasks.memo import Memo
from tasks.process import run_program
from tasks.report import markdown_table
from tasks.store import open_store


class HarnessInputs(Contract):
    """Which model, and what it is asked.

    Attributes:
        kind, model, base, tokenizer, quantization, device, batch_size: As `ScoreInputs` has them.
        tasks: Names.
        folder: With task files of one's own.
        limit: Examples of each task; 0: all.
        chat: Whether prompts are put into the chat template.
    """

    not_in_key = frozenset({"batch_size"})

    kind: str
    model: Artifact | None
    base: Source | None
    tokenizer: Artifact | None
    quantization: str
    device: str
    batch_size: int
    tasks: tuple[str, ...]
    folder: Source | None
    limit: int
    chat: bool


@step(
    "harness",
    result=Benchmarked,
    code=("tasks.harness", "tasks.programs.harness"),
    libraries=("lm-eval", "torch", "transformers", "peft", "bitsandbytes", "datasets"),
)
def harness(inputs: HarnessInputs, room: Room) -> Benchmarked:
    """Run the tasks on the files that ship, in a process of its own.

    Raises:
        BadModel: The files cannot be loaded.
        BadRecipe: A task is not known.
        NotFound: A task's data are not on this machine.
    """
    store = open_store(room.store)
    with store.scratch() as scratch:
        base = fetch_folder(inputs.base, scratch / "base") if inputs.base else None
        folder = fetch_folder(inputs.folder, scratch / "tasks") if inputs.folder else None
        job = {
            "model": str(store.open(inputs.model) if inputs.model else base),
            "base": str(base) if base else None,
            "kind": inputs.kind,
            "quantization": inputs.quantization,
            "tokenizer": str(store.open(inputs.tokenizer)) if inputs.tokenizer else None,
            "device": inputs.device,
            "batch_size": inputs.batch_size,
            "tasks": list(inputs.tasks),
            "folder": str(folder.resolve()) if folder else None,
            "limit": inputs.limit,
            "chat": inputs.chat,
        }
        result = run_program("tasks.programs.harness", job, scratch=scratch)
        out = scratch / "results"
        out.mkdir()
        (out / "results.json").write_bytes(
            orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        )
        return Benchmarked(artifact=store.put("harness", out), **result)


def harness_inputs(recipe: Recipe, scoring: ScoreInputs) -> HarnessInputs:
    """What the recipe asks of a model.

    Args:
        recipe: With `evaluation.harness`.
        scoring: How the same model is scored.

    Raises:
        NotFound: `evaluation.harness_folder` does not exist.
    """
    asked = recipe.evaluation
    loading: dict[str, Any] = {
        name: getattr(scoring, name)
        for name in ("kind", "model", "base", "tokenizer", "quantization", "device", "batch_size")
    }
    return HarnessInputs(
        **loading,
        tasks=asked.harness,
        folder=_folder(recipe),
        limit=asked.harness_limit,
        chat=recipe.task != "completion",
    )


def check_harness(recipe: Recipe, room: Room) -> None:
    """Refuse early what cannot be run. Tasks that were found once are not looked for again.

    Raises:
        BadRecipe: lm-evaluation-harness is not installed, or cannot load a task.
        NotFound: `evaluation.harness_folder` does not exist, or a task's data are not on this
            machine.
    """
    asked = recipe.evaluation
    if not asked.harness:
        return
    if find_spec("lm_eval") is None:
        raise BadRecipe(
            "evaluation.harness",
            "tasks, but no lm-evaluation-harness on this machine",
            "the package lm-eval",
            "run `pip install 'burnish[harness]'`, or leave evaluation.harness empty",
        )
    _check_tasks(asked.harness, _folder(recipe), room)


def _folder(recipe: Recipe) -> Source | None:
    named = recipe.evaluation.harness_folder
    return resolve(named, "tasks") if named else None


def _check_tasks(names: tuple[str, ...], source: Source | None, room: Room) -> None:
    memo = Memo(
        "harness-tasks",
        "harness",
        room,
        code=("tasks.programs.harness_tasks",),
        libraries=("lm-eval",),
    )
    key = memo.key({"tasks": sorted(names), "folder": source.digest if source else ""})
    if memo.get(key) is not None:
        return
    with open_store(room.store).scratch() as scratch:
        folder = fetch_folder(source, scratch / "tasks") if source else None
        job = {"tasks": list(names), "folder": str(folder.resolve()) if folder else None}
        run_program("tasks.programs.harness_tasks", job, scratch=scratch)
    memo.put(key, {"tasks": list(names)})


def harness_markdown(candidate: Benchmarked, baseline: Benchmarked | None) -> str:
    """The results side by side, for the report."""
    rows = []
    for task, metrics in candidate.results.items():
        theirs = baseline.results.get(task, {}) if baseline else {}
        for name, value in metrics.items():
            if "_stderr" in name:
                continue
            error = name.replace(name.split("/")[0], f"{name.split('/')[0]}_stderr", 1)
            rows.append(
                (
                    task,
                    name,
                    _shown(theirs.get(name), theirs.get(error)),
                    _shown(value, metrics.get(error)),
                    str(candidate.examples.get(task, "")),
                )
            )
    table = markdown_table(("task", "metric", "baseline", "candidate", "examples"), rows)
    return f"For information: the gate does not look at these.\n\n{table}"


def _shown(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + (f" ± {error:.4f}" if error else "")
