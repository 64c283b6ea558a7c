"""The benchmarks step: tasks of lm-evaluation-harness on candidate and baseline, for the report.

The gate ignores them: such scores change for many reasons, and most of them measure other abilities
than those that were trained.
"""

from __future__ import annotations

from importlib.util import find_spec

import orjson

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.base import Contract
from tasks.contracts.errors import BadRecipe
from tasks.contracts.jobs import BenchmarkJob, BenchmarkResult, CheckBenchmarksJob, Done
from tasks.contracts.results import Benchmarked
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.run_program import run_program
from tasks.runtime.substep_cache import SubstepCache
from tasks.storage.sources import fetch_folder
from tasks.storage.store import open_store


class BenchmarkTasks(Contract):
    """Tasks of lm-evaluation-harness.

    Attributes:
        names: Their names.
        folder: The user's own task files; None if there are none.
    """

    names: tuple[str, ...]
    folder: Source | None


class BenchmarkInputs(Contract):
    """The model, and the tasks to run on it.

    Attributes:
        kind, model, base, tokenizer, quantization, device, batch_size: As in `ScoreInputs`.
        tasks: The tasks.
        limit: Examples per task; 0: all.
        chat: Whether the chat template is applied to prompts.
    """

    cache_key_excludes = frozenset({"batch_size"})

    kind: str
    model: Artifact | None
    base: Source | None
    tokenizer: Artifact | None
    quantization: str
    device: str
    batch_size: int
    tasks: BenchmarkTasks
    limit: int
    chat: bool


@step(
    "benchmarks",
    result=Benchmarked,
    code=("tasks.evaluate.benchmark_step", "tasks.evaluate.benchmark_program"),
    libraries=("lm-eval", "torch", "transformers", "peft", "bitsandbytes", "datasets"),
    on_pool=True,
)
def run_benchmarks(inputs: BenchmarkInputs, context: RunContext) -> Benchmarked:
    """Run the tasks on the released files, in a process of its own.

    Raises:
        BadModel: The files cannot be loaded.
        BadRecipe: A task is unknown.
        NotFound: A task's data is not on this machine.
    """
    store = open_store(context.store)
    with store.scratch() as scratch:
        base = fetch_folder(inputs.base, scratch / "base") if inputs.base else None
        own = inputs.tasks.folder
        folder = fetch_folder(own, scratch / "tasks") if own else None
        job = BenchmarkJob(
            model=store.open(inputs.model) if inputs.model else base,
            kind=inputs.kind,
            base=base,
            quantization=inputs.quantization,
            tokenizer=store.open(inputs.tokenizer) if inputs.tokenizer else None,
            device=inputs.device,
            tasks=inputs.tasks.names,
            folder=folder.resolve() if folder else None,
            limit=inputs.limit,
            chat=inputs.chat,
            batch_size=inputs.batch_size,
        )
        found = run_program(
            "tasks.evaluate.benchmark_program", job, BenchmarkResult, scratch=scratch
        )
        result = found.model_dump(mode="json")
        out = scratch / "results"
        out.mkdir()
        (out / "results.json").write_bytes(
            orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        )
        return Benchmarked(artifact=store.put("benchmarks", out), **result)


def check_benchmarks(tasks: BenchmarkTasks, context: RunContext) -> None:
    """Refuse tasks that cannot be run. Tasks that passed once are not checked again.

    Raises:
        BadRecipe: lm-evaluation-harness is not installed, or cannot load a task.
        NotFound: A task's data are not on this machine.
    """
    if find_spec("lm_eval") is None:
        raise BadRecipe(
            "evaluation.benchmarks",
            "tasks, but lm-evaluation-harness is not installed on this machine",
            "the package lm-eval",
            "run `pip install 'burnish[benchmarks]'`, or leave evaluation.benchmarks empty",
        )
    names, source = tasks.names, tasks.folder
    substeps = SubstepCache(
        "benchmark-tasks",
        "benchmarks",
        context,
        code=("tasks.evaluate.benchmark_check_program",),
        libraries=("lm-eval",),
    )
    key = substeps.key({"tasks": sorted(names), "folder": source.digest if source else ""})
    if substeps.get(key) is not None:
        return
    with open_store(context.store).scratch() as scratch:
        folder = fetch_folder(source, scratch / "tasks") if source else None
        job = CheckBenchmarksJob(tasks=names, folder=folder.resolve() if folder else None)
        run_program("tasks.evaluate.benchmark_check_program", job, Done, scratch=scratch)
    substeps.put(key, {"tasks": list(names)})
