"""The inputs of what scores models: candidate and baseline, on the test set, on the guard set, in
benchmarks, and before the LLM judge."""

from __future__ import annotations

from typing import Any

from tasks.base_model.gguf_step import trainable_source
from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.candidate import GuardSet, Planned, Trained
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import Release
from tasks.contracts.results import Finetuned, Scored
from tasks.evaluate.benchmark_step import BenchmarkInputs, BenchmarkTasks
from tasks.evaluate.llm_judge_step import LlmJudgeInputs
from tasks.evaluate.step import ScoreInputs
from tasks.release.provenance import ShippedForm, shipped_form
from tasks.release.publish import restore
from tasks.runtime.context import RunContext
from tasks.storage.sources import resolve
from tasks.storage.store import open_store


def candidate_score_inputs(
    recipe: Recipe, planned: Planned, finetuned: Finetuned | None
) -> ScoreInputs:
    """How the candidate is scored: in the form in which it ships.

    Args:
        recipe, planned: Of this run.
        finetuned: The trained model; None if it is not trained yet: then the fields `model`,
            `check` and `check_loss` say nothing.
    """
    adapter = recipe.model.ship == "adapter"
    return ScoreInputs(
        kind=recipe.model.ship,
        model=finetuned.artifact if finetuned else None,
        base=planned.model if adapter else None,
        quantization=recipe.quantization if adapter else "none",
        labels=(),
        check=finetuned.check if finetuned else None,
        check_loss=finetuned.check_loss if finetuned else 0.0,
        **_test_set(recipe, planned),
    )


def release_score_inputs(
    recipe: Recipe, planned: Planned, artifact: Artifact, form: ShippedForm, base: Source | None
) -> ScoreInputs:
    """How a deployed release is scored: in the form in which it shipped, on this run's test set.

    Args:
        recipe, planned: Of this run.
        artifact: The release's model.
        form: How it is loaded.
        base: The base model, for an adapter.
    """
    return ScoreInputs(
        kind=form.ship,
        model=artifact,
        base=base,
        quantization=form.quantization if base else "none",
        labels=(),
        **_test_set(recipe, planned),
    )


def restored_score_inputs(
    recipe: Recipe, planned: Planned, release: Release, context: RunContext
) -> ScoreInputs:
    """How an earlier release is scored, once its files are restored if the store lost them.

    Raises:
        BurnishError: They cannot be restored, or its base model cannot be found.
    """
    store = open_store(context.store)
    restore(release, store, recipe.publish.private)
    form = shipped_form(release, store)
    base = None
    if form.ship == "adapter":
        base = trainable_source(resolve(form.base, "model"), context)
    return release_score_inputs(recipe, planned, release.artifact, form, base)


def untrained_score_inputs(recipe: Recipe, planned: Planned) -> ScoreInputs:
    """How the untrained base is scored, as the baseline of a first run."""
    return ScoreInputs(
        kind="untrained",
        model=None,
        base=planned.model,
        tokenizer=planned.inspected.artifact,
        quantization="none",
        labels=planned.loaded.labels,
        **{"max_length": recipe.training.max_length, **_test_set(recipe, planned)},
    )


def _test_set(recipe: Recipe, planned: Planned) -> dict[str, Any]:
    """The fields that are the same for every model that is scored."""
    fields: dict[str, Any] = {
        "seed": recipe.training.seed,
        "test_digest": planned.loaded.test_digest,
        "dataset": planned.loaded.artifact,
        "hardware": planned.machine.processor if recipe.gate.max_latency_ms else "",
        "batch_size": recipe.evaluation.batch_size,
        "device": planned.plan.device,
        "task": recipe.task,
    }
    if recipe.task == "text-classification":
        return fields
    return fields | {
        "max_length": recipe.training.max_length,
        "generate_tokens": recipe.evaluation.generate_tokens,
        "must_match": recipe.evaluation.must_match,
        "must_not_contain": recipe.evaluation.must_not_contain,
        "json_schema": recipe.evaluation.json_schema,
        "beta": recipe.training.beta,
    }


def guard_score_inputs(scoring: ScoreInputs, guard: GuardSet) -> ScoreInputs:
    """How a model is scored on the guard set: by its loss alone."""
    return scoring.model_copy(
        update={
            "test_digest": guard.loaded.test_digest,
            "dataset": guard.loaded.artifact,
            "hardware": "",
            "task": guard.task,
            "generate_tokens": 0,
            "must_match": "",
            "must_not_contain": (),
            "json_schema": "",
            "check": None,
        }
    )


def llm_judge_inputs(
    recipe: Recipe, trained: Trained, candidate: Scored, baseline: Scored | None
) -> LlmJudgeInputs | None:
    """None without an LLM judge or a baseline."""
    if not recipe.evaluation.llm_judge.url or baseline is None:
        return None
    return LlmJudgeInputs(
        candidate=candidate.artifact,
        baseline=baseline.artifact,
        test_digest=trained.loaded.test_digest,
        dataset=trained.loaded.artifact,
        llm_judge=recipe.evaluation.llm_judge,
    )


def benchmark_tasks(recipe: Recipe) -> BenchmarkTasks | None:
    """None if the recipe names no benchmarks.

    Raises:
        NotFound: `evaluation.benchmark_folder` does not exist.
    """
    evaluation = recipe.evaluation
    if not evaluation.benchmarks:
        return None
    folder = evaluation.benchmark_folder
    return BenchmarkTasks(
        names=evaluation.benchmarks, folder=resolve(folder, "tasks") if folder else None
    )


def benchmark_inputs(
    recipe: Recipe, tasks: BenchmarkTasks, scoring: ScoreInputs
) -> BenchmarkInputs:
    """The benchmarks of a model that is loaded as for scoring."""
    return BenchmarkInputs(
        kind=scoring.kind,
        model=scoring.model,
        base=scoring.base,
        tokenizer=scoring.tokenizer,
        quantization=scoring.quantization,
        device=scoring.device,
        batch_size=scoring.batch_size,
        tasks=tasks,
        limit=recipe.evaluation.benchmark_limit,
        chat=recipe.task != "completion",
    )
