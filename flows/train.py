"""The first half of a run: from the sources to a trained model."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from threading import Thread

from tasks.base_model.gguf_step import GgufInputs, as_source, convert_gguf, is_gguf
from tasks.base_model.inspect_step import InspectInputs, inspect_model
from tasks.contracts.artifacts import Source
from tasks.contracts.candidate import GuardSet, Trained
from tasks.contracts.forecast import Forecast, must_be_tight
from tasks.contracts.plan import Plan
from tasks.contracts.recipe import Recipe
from tasks.contracts.results import ConvertedGguf, Finetuned, Inspected, Loaded, Tokenized
from tasks.finetune.step import FinetuneInputs, finetune
from tasks.load.guard_set import load_guard
from tasks.load.step import LoadInputs, load
from tasks.plan.forecast_step import remember_throughput, scoring_warnings, tell, workload
from tasks.plan.plan import make_plan
from tasks.plan.preflight import refuse_adapter, refuse_early, refuse_memory
from tasks.release import deployment_log
from tasks.release.provenance import data_report, provenance_of
from tasks.report.loss_curve import loss_curve
from tasks.report.markdown import data_markdown, forecast_markdown, samples_markdown
from tasks.report.run_report import RunReport
from tasks.report.summaries import finetune_sentence, load_sentence, tokenize_sentence
from tasks.runtime.context import RunContext
from tasks.runtime.run_program import preload
from tasks.storage.sources import resolve
from tasks.storage.store import default_store, open_store
from tasks.tokenize.step import TokenizeInputs, token_samples, tokenize


@dataclass(frozen=True)
class Prepared:
    """What training starts from: nothing of it needs a GPU."""

    data: Source
    model: Source
    loaded: Loaded
    inspected: Inspected
    tokenized: Tokenized
    guard: GuardSet | None
    converted: ConvertedGguf | None


def train(recipe: Recipe, context: RunContext, report: RunReport) -> Trained:
    """From the sources to a trained model; refuses what can be refused before training."""
    ready = prepare(recipe, context, report)
    plan, told = settle_plan(recipe, ready, context, report)
    finetuned = fit(recipe, ready, plan, told, context, report)
    return Trained(
        recipe=recipe,
        data=ready.data,
        model=ready.model,
        plan=plan,
        loaded=ready.loaded,
        inspected=ready.inspected,
        tokenized=ready.tokenized,
        finetuned=finetuned,
        guard=ready.guard,
        converted=ready.converted,
    )


def preload_if_data_changed(recipe: Recipe) -> None:
    """Have loaded what the programs need while Prefect itself starts, where the data are new.

    What goes wrong here is met again in the run, and told there. Remote data are not asked for
    twice.
    """
    if any(uri.startswith(("hf://", "s3://")) for uri in recipe.data.uris):
        return
    # Whatever it is: there is no run yet whose page could tell of it.
    with suppress(Exception):
        asked = _load_inputs(recipe, resolve(recipe.data.uri, "data"))
        _preload_if_new(asked, RunContext(store=recipe.store or default_store()))


def _load_inputs(recipe: Recipe, data: Source) -> LoadInputs:
    return LoadInputs(data=recipe.data, source=data, task=recipe.task)


def _preload_if_new(asked: LoadInputs, context: RunContext) -> None:
    """New data are examined, tokenized and trained on: have loaded what that needs."""
    if load.known(asked, context) is None:
        preload()


def prepare(recipe: Recipe, context: RunContext, report: RunReport) -> Prepared:
    """Load the data, examine the base model, tokenize what is new."""
    report.status("Resolving data and base model.")
    data = resolve(recipe.data.uri, "data")
    model = resolve(recipe.model.uri, "model")
    refuse_adapter(recipe, model)

    report.status("Loading the data.")
    asked = _load_inputs(recipe, data)
    _preload_if_new(asked, context)
    loaded = load(asked, context)
    report.add_step("load", loaded, load_sentence(loaded, context.run_id))
    report.section("Data", data_section(loaded, recipe, context))

    model, unpacked = convert_base(model, context, report)
    inspected = inspect_model(
        InspectInputs(
            model=model,
            labels=loaded.labels,
            task=recipe.task,
            chat_template=recipe.model.chat_template,
        ),
        context,
    )
    report.add_step(
        "inspect", inspected, f"{inspected.architecture}, {inspected.parameters:,} weights"
    )
    refuse_early(recipe, model, loaded, inspected)
    guard = load_guard(recipe, inspected.artifact, context)
    if guard:
        rows = guard.loaded.rows["test"]
        report.add_step("guard set", guard.loaded, f"{rows:,} examples, for {guard.task}")

    report.status("Tokenizing what is new.")
    tokenized = tokenize(
        TokenizeInputs(
            dataset=loaded.artifact,
            tokenizer=inspected.artifact,
            max_length=recipe.training.max_length,
            task=recipe.task,
            too_long=recipe.training.too_long,
        ),
        context,
    )
    report.add_step("tokenize", tokenized, tokenize_sentence(tokenized, context.run_id))
    if recipe.task != "text-classification":
        report.section("Training targets", samples_markdown(token_samples(tokenized, context)))
    report.warn(*inspected.warnings, *tokenized.warnings)
    return Prepared(data, model, loaded, inspected, tokenized, guard, unpacked)


def convert_base(
    model: Source, context: RunContext, report: RunReport
) -> tuple[Source, ConvertedGguf | None]:
    """The base model as all steps can load it, and what was unpacked where it is a GGUF file."""
    if not is_gguf(model):
        return model, None
    report.status("Unpacking the base model.")
    made = convert_gguf(GgufInputs(model=model), context)
    size = made.artifact.bytes
    report.add_step("gguf", made, f"{made.architecture} in {made.dtype}, {size / 1e6:,.0f} MB")
    return as_source(model, made.artifact, context), made


def settle_plan(
    recipe: Recipe, ready: Prepared, context: RunContext, report: RunReport
) -> tuple[Plan, Forecast | None]:
    """How it will be trained, and for a language model what that will take; refuses what will not
    fit."""
    tokens = ready.tokenized.tokens
    architecture = ready.inspected.architecture
    plan, told = make_plan(recipe, tokens, architecture=architecture), None
    if recipe.task != "text-classification":
        told = tell(
            recipe, ready.model, ready.inspected, ready.tokenized, ready.loaded, plan, context
        )
        refuse_memory(recipe, told, gguf_base=ready.converted is not None)
        report.warn(*scoring_warnings(ready.inspected, told))
        plan = make_plan(recipe, tokens, told, architecture)
        work = workload(recipe, ready.inspected, ready.tokenized, ready.loaded, plan, context)
        report.section("Forecast", forecast_markdown(told, work))
    picks = [f"- {name}: {getattr(plan, name)}, for {why}" for name, why in plan.why.items()]
    report.section("Plan", "\n".join(picks))
    return plan, told


def fit(
    recipe: Recipe,
    ready: Prepared,
    plan: Plan,
    told: Forecast | None,
    context: RunContext,
    report: RunReport,
) -> Finetuned:
    """Train."""
    report.status("Training.")
    asked = FinetuneInputs(
        model=ready.model,
        tokenizer=ready.inspected.artifact,
        dataset=ready.loaded.artifact,
        tokens=ready.tokenized.artifact,
        labels=ready.loaded.labels,
        lora=recipe.lora,
        quantization=recipe.quantization,
        training=recipe.training,
        plan=plan,
        ship=recipe.model.ship,
        head_modules=ready.inspected.head_modules,
        task=recipe.task,
        gguf=recipe.model.gguf,
        micro_batch_tokens=recipe.plan.micro_batch_tokens,
        most_tokens=told.micro_batch_tokens if told else 0,
        tight_memory=told is not None and must_be_tight(told),
    )
    if finetune.known(asked, context) is None:
        # A new model will be judged: scipy and scikit-learn take seconds to load, so meanwhile.
        Thread(target=import_module, args=("tasks.gate.decide",), daemon=True).start()
    finetuned = finetune(asked, context)
    if told:
        remember_throughput(recipe, ready.inspected, plan, finetuned, context)
    report.add_step("finetune", finetuned, finetune_sentence(finetuned))
    report.warn(*finetuned.warnings)
    report.section("Training", loss_curve(finetuned.history))
    return finetuned


def data_section(loaded: Loaded, recipe: Recipe, context: RunContext) -> str:
    """The data report, with what changed since the deployed release's data."""
    store = open_store(context.store)
    deployed = deployment_log.deployed(store, recipe.name, recipe.announce.channel)
    before = provenance_of(deployed.release, store)["data_report"] if deployed else None
    return data_markdown(data_report(loaded, store), before)
