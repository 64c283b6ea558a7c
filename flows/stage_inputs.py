"""Each stage's inputs, built from the recipe and from what earlier stages returned.

With `flows/score_inputs.py`, the only place that reads a recipe on behalf of a stage: a stage takes
its inputs and nothing else.
"""

from __future__ import annotations

import math

from tasks.base_model.inspect_step import InspectInputs
from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.candidate import Candidate, Planned, Prepared, Trained
from tasks.contracts.forecast import Forecast, must_be_tight
from tasks.contracts.machine import LIGER, Machine
from tasks.contracts.plan import Plan
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import LogEntry
from tasks.contracts.results import Comparisons, Inspected, Loaded, Scored
from tasks.finetune.gguf_export_step import GgufCheckInputs, GgufExportInputs
from tasks.finetune.step import FinetuneInputs
from tasks.gate.step import AnchorInputs, GateInputs
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
from tasks.release.looks import Look
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
    recipe: Recipe, machine: Machine, base: Source, loaded: Loaded, inspected: Inspected
) -> PreflightInputs:
    """What is checked before training."""
    return PreflightInputs(
        machine=machine,
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


def plan_inputs(recipe: Recipe, prepared: Prepared, forecast: Forecast | None = None) -> PlanInputs:
    """What the plan depends on; the forecast is None for the first plan."""
    return PlanInputs(
        machine=prepared.machine,
        task=recipe.task,
        quantization=recipe.quantization,
        training=recipe.training,
        settings=recipe.plan,
        tokens=prepared.tokenized.tokens,
        architecture=prepared.inspected.architecture,
        forecast=forecast,
    )


def forecast_inputs(recipe: Recipe, prepared: Prepared, plan: Plan) -> ForecastInputs:
    """The plan's checkpointing is left out: the forecast decides it, unless the recipe does."""
    training = recipe.training
    tokenized = prepared.tokenized
    examples = math.ceil(training.batch_size / plan.world_size)
    longest = longest_sequence(recipe.task, tokenized.longest, training.max_length)
    limits = memory_limits(prepared.machine, recipe.plan.device_memory_gb)
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
        hardware=prepared.machine.kind if plan.device == "cpu" else "",
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
        device_kind=prepared.machine.kind,
        loaded=prepared.loaded,
        tokenized=prepared.tokenized,
        batch_size=recipe.training.batch_size,
        epochs=recipe.training.epochs,
    )


def finetune_inputs(recipe: Recipe, planned: Planned) -> FinetuneInputs:
    """What is trained, and how."""
    plan, forecast = planned.plan, planned.forecast
    return FinetuneInputs(
        model=planned.model,
        tokenizer=planned.inspected.artifact,
        dataset=planned.loaded.artifact,
        tokens=planned.tokenized.artifact,
        labels=planned.loaded.labels,
        lora=recipe.lora,
        quantization=recipe.quantization,
        training=recipe.training,
        plan=plan,
        ship=recipe.model.ship,
        head_modules=planned.inspected.head_modules,
        task=recipe.task,
        micro_batch_tokens=recipe.plan.micro_batch_tokens,
        max_micro_batch_tokens=forecast.micro_batch_tokens if forecast else 0,
        tight_memory=forecast is not None and must_be_tight(forecast),
        liger_version=planned.machine.libraries[LIGER] if plan.kernels == "liger" else "",
    )


def gguf_check_inputs(recipe: Recipe, planned: Planned) -> GgufCheckInputs | None:
    """The base model and its tokenizer; None if the recipe asks for no GGUF file."""
    if recipe.model.gguf == "none":
        return None
    return GgufCheckInputs(
        base=planned.model,
        tokenizer=planned.inspected.artifact,
        file_type=recipe.model.gguf,
        converter=_converter(planned.machine),
    )


def gguf_export_inputs(
    recipe: Recipe, machine: Machine, model: Artifact
) -> GgufExportInputs | None:
    """The trained model and the file type; None if the recipe asks for no GGUF file."""
    if recipe.model.gguf == "none":
        return None
    return GgufExportInputs(model=model, file_type=recipe.model.gguf, converter=_converter(machine))


def _converter(machine: Machine) -> str:
    return machine.converter.digest if machine.converter else ""


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
    look: Look,
    anchor: AnchorInputs | None,
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
        look_number=look.number,
        looks=look.looks,
        anchor=anchor,
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
