"""Each stage's inputs, built from the recipe and from what earlier stages returned.

The only place that reads a recipe on behalf of a stage: a stage takes its inputs and nothing else.
"""

from __future__ import annotations

import math
from typing import Any

from tasks.base_model.inspect_step import InspectInputs
from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.candidate import Candidate, GuardSet, Prepared, Trained
from tasks.contracts.forecast import Forecast, must_be_tight
from tasks.contracts.plan import Plan
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import LogEntry
from tasks.contracts.results import Comparisons, Finetuned, Inspected, Loaded, Scored, Tokenized
from tasks.evaluate.benchmark_step import BenchmarkInputs, BenchmarkTasks
from tasks.evaluate.llm_judge_step import LlmJudgeInputs
from tasks.evaluate.step import ScoreInputs, hardware_kind
from tasks.finetune.gguf_export_step import GgufExportInputs
from tasks.finetune.step import FinetuneInputs
from tasks.gate.step import GateInputs
from tasks.load.guard_set import GuardInputs
from tasks.load.step import LoadInputs
from tasks.plan.forecast_step import ForecastInputs
from tasks.plan.memory_limits import memory_limits
from tasks.plan.plan import PlanInputs
from tasks.plan.preflight import PreflightInputs
from tasks.plan.workload import (
    TrainingKind,
    WorkloadInputs,
    longest_sequence,
    target_share,
    tokens_of_large_step,
)
from tasks.release.inputs import ReleaseInputs
from tasks.release.provenance import ShippedForm
from tasks.runtime.hardware import device_kind
from tasks.storage.sources import resolve
from tasks.tokenize.step import TokenizeInputs


def load_inputs(recipe: Recipe, source: Source) -> LoadInputs:
    """What is loaded, and for which task."""
    return LoadInputs(data=recipe.data, source=source, task=recipe.task)


def inspect_inputs(recipe: Recipe, base: Source, loaded: Loaded) -> InspectInputs:
    """The base model, and the head and chat template that it gets."""
    return InspectInputs(
        model=base,
        labels=loaded.labels,
        task=recipe.task,
        chat_template=recipe.model.chat_template,
    )


def preflight_inputs(
    recipe: Recipe, base: Source, loaded: Loaded, inspected: Inspected
) -> PreflightInputs:
    """What is checked before training."""
    return PreflightInputs(
        task=recipe.task,
        quantization=recipe.quantization,
        lora=recipe.lora,
        settings=recipe.plan,
        max_length=recipe.training.max_length,
        gguf=recipe.model.gguf,
        base=base,
        loaded=loaded,
        inspected=inspected,
    )


def guard_inputs(recipe: Recipe, tokenizer: Artifact) -> GuardInputs | None:
    """None if the recipe names no guard set."""
    if not recipe.evaluation.guard.uri:
        return None
    return GuardInputs(guard=recipe.evaluation.guard, task=recipe.task, tokenizer=tokenizer)


def tokenize_inputs(recipe: Recipe, loaded: Loaded, inspected: Inspected) -> TokenizeInputs:
    """The data and the tokenizer."""
    return TokenizeInputs(
        dataset=loaded.artifact,
        tokenizer=inspected.artifact,
        max_length=recipe.training.max_length,
        task=recipe.task,
        too_long=recipe.training.too_long,
    )


def plan_inputs(
    recipe: Recipe, inspected: Inspected, tokenized: Tokenized, forecast: Forecast | None = None
) -> PlanInputs:
    """What the plan depends on; the forecast is None for the first plan."""
    return PlanInputs(
        task=recipe.task,
        quantization=recipe.quantization,
        training=recipe.training,
        settings=recipe.plan,
        tokens=tokenized.tokens,
        architecture=inspected.architecture,
        forecast=forecast,
    )


def forecast_inputs(recipe: Recipe, prepared: Prepared, plan: Plan) -> ForecastInputs:
    """The plan's checkpointing is left out: the forecast decides it, unless the recipe does."""
    training = recipe.training
    tokenized = prepared.tokenized
    examples = math.ceil(training.batch_size / plan.world_size)
    longest = longest_sequence(recipe.task, tokenized.longest, training.max_length)
    limits = memory_limits(plan.device, recipe.plan.device_memory_gb)
    return ForecastInputs(
        model=prepared.model,
        task=recipe.task,
        lora=recipe.lora,
        quantization=recipe.quantization,
        plan=plan.model_copy(update={"checkpointing": False, "why": {}}),
        ship=recipe.model.ship,
        checkpointing=recipe.plan.checkpointing,
        micro_batch_tokens=recipe.plan.micro_batch_tokens,
        max_length=training.max_length,
        longest=longest,
        most_tokens=tokens_of_large_step(tokenized, prepared.loaded, examples, longest),
        target_share=target_share(tokenized),
        memory=limits.memory,
        reserve=limits.reserve,
        host_memory=limits.host_memory,
        host_reserve=limits.host_reserve,
        stored_bytes=prepared.inspected.shape.get("stored_bytes", 4),
        hardware=device_kind("cpu") if plan.device == "cpu" else "",
    )


def workload_inputs(recipe: Recipe, prepared: Prepared, plan: Plan) -> WorkloadInputs:
    """The training whose time is estimated."""
    kind = TrainingKind(
        architecture=prepared.inspected.architecture,
        shape=prepared.inspected.shape,
        task=recipe.task,
        lora=recipe.lora,
        quantization=recipe.quantization,
        plan=plan,
    )
    return WorkloadInputs(
        kind=kind,
        loaded=prepared.loaded,
        tokenized=prepared.tokenized,
        batch_size=recipe.training.batch_size,
        epochs=recipe.training.epochs,
    )


def finetune_inputs(
    recipe: Recipe, prepared: Prepared, plan: Plan, forecast: Forecast | None
) -> FinetuneInputs:
    """What is trained, and how."""
    return FinetuneInputs(
        model=prepared.model,
        tokenizer=prepared.inspected.artifact,
        dataset=prepared.loaded.artifact,
        tokens=prepared.tokenized.artifact,
        labels=prepared.loaded.labels,
        lora=recipe.lora,
        quantization=recipe.quantization,
        training=recipe.training,
        plan=plan,
        ship=recipe.model.ship,
        head_modules=prepared.inspected.head_modules,
        task=recipe.task,
        micro_batch_tokens=recipe.plan.micro_batch_tokens,
        max_micro_batch_tokens=forecast.micro_batch_tokens if forecast else 0,
        tight_memory=forecast is not None and must_be_tight(forecast),
    )


def gguf_export_inputs(recipe: Recipe, finetuned: Finetuned) -> GgufExportInputs | None:
    """The trained model and the file type; None if the recipe asks for no GGUF file."""
    if recipe.model.gguf == "none":
        return None
    return GgufExportInputs(model=finetuned.artifact, file_type=recipe.model.gguf)


def candidate_score_inputs(recipe: Recipe, trained: Trained) -> ScoreInputs:
    """How the candidate is scored: in the form in which it ships."""
    adapter = recipe.model.ship == "adapter"
    return ScoreInputs(
        kind=recipe.model.ship,
        model=trained.finetuned.artifact,
        base=trained.model if adapter else None,
        quantization=recipe.quantization if adapter else "none",
        labels=(),
        check=trained.finetuned.check,
        check_loss=trained.finetuned.check_loss,
        **_test_set(recipe, trained),
    )


def release_score_inputs(
    recipe: Recipe, trained: Trained, artifact: Artifact, form: ShippedForm, base: Source | None
) -> ScoreInputs:
    """How a deployed release is scored: in the form in which it shipped, on this run's test set.

    Args:
        recipe, trained: Of this run.
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
        **_test_set(recipe, trained),
    )


def untrained_score_inputs(recipe: Recipe, trained: Trained) -> ScoreInputs:
    """How the untrained base is scored, as the baseline of a first run."""
    return ScoreInputs(
        kind="untrained",
        model=None,
        base=trained.model,
        tokenizer=trained.inspected.artifact,
        quantization="none",
        labels=trained.loaded.labels,
        **{"max_length": recipe.training.max_length, **_test_set(recipe, trained)},
    )


def _test_set(recipe: Recipe, trained: Trained) -> dict[str, Any]:
    """The fields that are the same for every model that is scored."""
    fields: dict[str, Any] = {
        "seed": recipe.training.seed,
        "test_digest": trained.loaded.test_digest,
        "dataset": trained.loaded.artifact,
        "hardware": hardware_kind() if recipe.gate.max_latency_ms else "",
        "batch_size": recipe.evaluation.batch_size,
        "device": trained.plan.device,
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


def gate_inputs(
    recipe: Recipe,
    trained: Trained,
    deployed: LogEntry | None,
    *,
    baseline_seen: Artifact | None,
    candidate: Scored,
    baseline: Scored | None,
    guard_candidate: Scored | None,
    guard_baseline: Scored | None,
    comparisons: Comparisons | None,
    look_number: int,
) -> GateInputs:
    """The scores and the rules that the gate compares them by."""
    return GateInputs(
        candidate=candidate,
        baseline=baseline,
        baseline_name=_baseline_name(deployed, baseline),
        baseline_entry=deployed.number if deployed else 0,
        candidate_seen=trained.loaded.artifact,
        baseline_seen=baseline_seen,
        rules=recipe.gate,
        slices=recipe.evaluation.slices,
        task=recipe.task,
        test_digest=trained.loaded.test_digest,
        look_number=look_number,
        guard_candidate=guard_candidate,
        guard_baseline=guard_baseline,
        guard_task=trained.guard.task if trained.guard else "instruction",
        comparisons=comparisons,
        gguf_bytes=trained.gguf_exported.artifact.bytes if trained.gguf_exported else 0,
    )


def _baseline_name(deployed: LogEntry | None, baseline: Scored | None) -> str:
    if deployed:
        return deployed.release.version
    return "untrained base" if baseline else "none"


def release_inputs(recipe: Recipe, candidate: Candidate, log_number: int) -> ReleaseInputs:
    """What is published; `log_number` is the number of the log's newest entry when the baseline was
    read."""
    return ReleaseInputs(
        name=recipe.name,
        channel=recipe.announce.channel,
        publish=recipe.publish,
        candidate=candidate,
        log_number=log_number,
        recipe=recipe.model_dump(mode="json"),
        recipe_digest=recipe.digest,
        task=recipe.task,
        data=recipe.data,
        base=recipe.model,
        lora=recipe.lora,
        quantization=recipe.quantization,
        training=recipe.training,
    )
