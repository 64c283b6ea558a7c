"""The first half of a run: from the sources to a plan, and from there to a trained model."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from threading import Thread

from flows import stage_inputs
from tasks.base_model.gguf_step import GgufInputs, convert_gguf, converted_source, is_gguf
from tasks.base_model.inspect_step import inspect_model
from tasks.contracts.artifacts import Source
from tasks.contracts.candidate import GuardSet, Planned, Prepared, Trained
from tasks.contracts.recipe import Recipe
from tasks.contracts.results import (
    ConvertedGguf,
    Finetuned,
    GgufExported,
    Inspected,
    Loaded,
    Tokenized,
)
from tasks.contracts.task_tables import MACRO
from tasks.finetune.gguf_export_step import check_gguf_export, export_gguf
from tasks.finetune.step import finetune
from tasks.load.guard_set import load_guard
from tasks.load.step import LoadInputs, load
from tasks.plan.forecast_step import forecast, scoring_warnings
from tasks.plan.plan import make_plan
from tasks.plan.preflight import (
    refuse_adapter,
    refuse_early,
    refuse_memory,
    refuse_small_labels,
    refuse_small_test,
)
from tasks.plan.workload import remember_throughput, workload
from tasks.release import deployment_log
from tasks.release.provenance import damage_sentence, data_report, provenance_if_whole
from tasks.report.loss_curve import loss_curve
from tasks.report.markdown import data_markdown, forecast_markdown, samples_markdown
from tasks.report.run_report import RunReport, Section
from tasks.report.summaries import finetune_sentence, load_sentence, tokenize_sentence
from tasks.runtime.context import RunContext
from tasks.runtime.machine import this_machine
from tasks.runtime.run_program import preload
from tasks.runtime.telling import telling
from tasks.storage.sources import resolve
from tasks.storage.store import default_store, open_store
from tasks.tokenize.step import token_samples, tokenize


def plan_training(recipe: Recipe, context: RunContext, report: RunReport) -> Planned:
    """From the sources to the plan; refuses what would fail later."""
    prepared = prepare(recipe, context, report)
    return make_plans(recipe, prepared, context, report)


def train(recipe: Recipe, planned: Planned, context: RunContext, report: RunReport) -> Trained:
    """From the plan to a trained model."""
    finetuned = fit(recipe, planned, context, report)
    exported = export_model(recipe, planned, finetuned, context, report)
    return Trained(**dict(planned), finetuned=finetuned, gguf_exported=exported)


def preload_if_data_changed(recipe: Recipe) -> None:
    """Preload model libraries while Prefect starts, if the data changed.

    Remote data are not resolved twice. Errors are ignored: the run meets them again and reports
    them.
    """
    if any(uri.startswith(("hf://", "s3://")) for uri in recipe.data.uris):
        return
    with suppress(Exception):
        inputs = stage_inputs.load_inputs(recipe, resolve(recipe.data.uri, "data"))
        _preload_if_new(inputs, RunContext(store=recipe.store or default_store()))


def _preload_if_new(inputs: LoadInputs, context: RunContext) -> None:
    """Preload model libraries if the data are new: they will be tokenized and trained on."""
    if load.cached(inputs, context) is None:
        preload()


def prepare(recipe: Recipe, context: RunContext, report: RunReport) -> Prepared:
    """Load the data, inspect the base model, tokenize what is new."""
    report.status("Resolving data and base model.")
    machine = context.machine or this_machine()
    data = resolve(recipe.data.uri, "data")
    model = resolve(recipe.model.uri, "model")
    refuse_adapter(recipe.model.ship, model)

    loaded = load_data(recipe, data, context, report)
    refuse_small_test(loaded, recipe.gate.min_examples)
    if recipe.gate.metric in MACRO:
        labels = data_report(loaded, open_store(context.store))["labels"]
        refuse_small_labels(labels, recipe.gate.metric)
    model, converted = convert_base(model, context, report)
    inspected = inspect_model(stage_inputs.inspect_inputs(recipe, model, loaded), context)
    report.add_step(
        "inspect", inspected, f"{inspected.architecture}, {inspected.parameters:,} parameters"
    )
    refuse_early(stage_inputs.preflight_inputs(recipe, machine, model, loaded, inspected), context)
    guard = load_guard_set(recipe, inspected, context, report)
    tokenized = tokenize_data(recipe, loaded, inspected, context, report)
    report.warn(*inspected.warnings, *tokenized.warnings)
    return Prepared(
        machine=machine,
        data=data,
        model=model,
        loaded=loaded,
        inspected=inspected,
        tokenized=tokenized,
        guard=guard,
        converted=converted,
    )


def load_data(recipe: Recipe, data: Source, context: RunContext, report: RunReport) -> Loaded:
    """Load the data, and report what changed since the deployed release's data."""
    report.status("Loading the data.")
    inputs = stage_inputs.load_inputs(recipe, data)
    _preload_if_new(inputs, context)
    loaded = load(inputs, context)
    report.add_step("load", loaded, load_sentence(loaded, context.run_id))
    report.warn(*loaded.warnings)
    store = open_store(context.store)
    deployed = deployment_log.deployed(store, recipe.name, recipe.announce.channel)
    before = provenance_if_whole(deployed.release, store) if deployed else None
    if deployed and before is None:
        report.warn(damage_sentence(deployed.release))
    data_before = before["data_report"] if before else None
    report.section(Section.DATA, data_markdown(data_report(loaded, store), data_before))
    return loaded


def convert_base(
    model: Source, context: RunContext, report: RunReport
) -> tuple[Source, ConvertedGguf | None]:
    """The base model in a form that all steps can load, and its conversion if it is a GGUF file."""
    if not is_gguf(model):
        return model, None
    report.status("Converting the base model from GGUF.")
    converted = convert_gguf(GgufInputs(model=model), context)
    size = converted.artifact.bytes
    report.add_step(
        "gguf", converted, f"{converted.architecture} in {converted.dtype}, {size / 1e6:,.0f} MB"
    )
    return converted_source(model, converted.artifact, context), converted


def load_guard_set(
    recipe: Recipe, inspected: Inspected, context: RunContext, report: RunReport
) -> GuardSet | None:
    """Load the guard set, if the recipe names one."""
    inputs = stage_inputs.guard_inputs(recipe, inspected.artifact)
    if inputs is None:
        return None
    guard = load_guard(inputs, context)
    rows = guard.loaded.rows["test"]
    report.add_step("guard set", guard.loaded, f"{rows:,} examples, for {guard.task}")
    return guard


def tokenize_data(
    recipe: Recipe, loaded: Loaded, inspected: Inspected, context: RunContext, report: RunReport
) -> Tokenized:
    """Tokenize new shards, and show a language model's first training examples."""
    report.status("Tokenizing new data.")
    tokenized = tokenize(stage_inputs.tokenize_inputs(recipe, loaded, inspected), context)
    report.add_step("tokenize", tokenized, tokenize_sentence(tokenized, context.run_id))
    if recipe.task != "text-classification":
        samples = samples_markdown(token_samples(tokenized, context))
        report.section(Section.TRAINING_EXAMPLES, samples)
    return tokenized


def make_plans(
    recipe: Recipe, prepared: Prepared, context: RunContext, report: RunReport
) -> Planned:
    """The plan, and for a language model the memory forecast; refuses what will not fit."""
    plan = make_plan(stage_inputs.plan_inputs(recipe, prepared))
    forecasted = None
    if recipe.task != "text-classification":
        forecasted = forecast(stage_inputs.forecast_inputs(recipe, prepared, plan), context)
        refuse_memory(
            forecasted,
            memory_declared=recipe.plan.device_memory_gb > 0,
            gguf_base=prepared.converted is not None,
        )
        report.warn(*scoring_warnings(prepared.inspected, forecasted))
        plan = make_plan(stage_inputs.plan_inputs(recipe, prepared, forecasted))
        work = workload(stage_inputs.workload_inputs(recipe, prepared, plan), context)
        report.section(Section.FORECAST, forecast_markdown(forecasted, work))
    picks = [f"- {name}: {getattr(plan, name)}, for {why}" for name, why in plan.why.items()]
    report.section(Section.PLAN, "\n".join(picks))
    return Planned(**dict(prepared), plan=plan, forecast=forecasted)


def fit(recipe: Recipe, planned: Planned, context: RunContext, report: RunReport) -> Finetuned:
    """Train."""
    report.status("Training.")
    inputs = stage_inputs.finetune_inputs(recipe, planned)
    if finetune.cached(inputs, context) is None:
        if check := stage_inputs.gguf_check_inputs(recipe, planned):
            check_gguf_export(check, context)
        # The gate will decide on a new model; scipy and scikit-learn take seconds to import.
        Thread(target=import_module, args=("tasks.gate.decide",), daemon=True).start()
    with telling(report):
        finetuned = finetune(inputs, context)
    if planned.forecast:
        work = stage_inputs.workload_inputs(recipe, planned, planned.plan)
        remember_throughput(work.kind, work.device_kind, finetuned, context)
    report.add_step("finetune", finetuned, finetune_sentence(finetuned))
    report.warn(*finetuned.warnings)
    report.section(Section.TRAINING, loss_curve(finetuned.history))
    return finetuned


def export_model(
    recipe: Recipe,
    planned: Planned,
    finetuned: Finetuned,
    context: RunContext,
    report: RunReport,
) -> GgufExported | None:
    """Export the trained model to GGUF, if the recipe asks for it."""
    inputs = stage_inputs.gguf_export_inputs(recipe, planned.machine, finetuned.artifact)
    if inputs is None:
        return None
    report.status("Exporting the model to GGUF.")
    exported = export_gguf(inputs, context)
    size = exported.artifact.bytes
    report.add_step("gguf-export", exported, f"{exported.file}, {size / 1e6:,.1f} MB")
    return exported
