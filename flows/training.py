"""The first half of a run: from the sources to a trained model."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from threading import Thread

from tasks.cache import Room
from tasks.contracts.artifact import (
    Finetuned,
    Inspected,
    Loaded,
    Plan,
    Source,
    Tokenized,
    Unpacked,
)
from tasks.contracts.candidate import GuardSet, Trained
from tasks.contracts.forecast import Forecast
from tasks.contracts.recipe import Recipe
from tasks.data.sources import resolve
from tasks.examine import ExamineInputs, examine
from tasks.finetune import FinetuneInputs, finetune
from tasks.forecast import (
    forecast_markdown,
    must_be_tight,
    remember_throughput,
    scoring_warnings,
    tell,
    workload,
)
from tasks.guard import load_guard
from tasks.load import LoadInputs, load
from tasks.plan import make_plan, refuse_adapter, refuse_early, refuse_memory
from tasks.process import warm_up
from tasks.publish import (
    data_report,
    provenance_of,
)
from tasks.release import ledger
from tasks.report import (
    RunReport,
    data_markdown,
    loss_curve,
    samples_markdown,
)
from tasks.store import default_store, open_store
from tasks.tokenize import TokenizeInputs, token_samples, tokenize
from tasks.unpack import UnpackInputs, as_source, is_gguf, unpack


@dataclass(frozen=True)
class Prepared:
    """What training starts from: nothing of it needs a GPU."""

    data: Source
    model: Source
    loaded: Loaded
    inspected: Inspected
    tokenized: Tokenized
    guard: GuardSet | None
    unpacked: Unpacked | None


def train(recipe: Recipe, room: Room, report: RunReport) -> Trained:
    """From the sources to a trained model; refuses what can be refused before training."""
    ready = prepare(recipe, room, report)
    plan, told = settle_plan(recipe, ready, room, report)
    finetuned = fit(recipe, ready, plan, told, room, report)
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
        unpacked=ready.unpacked,
    )


def foresee(recipe: Recipe) -> None:
    """Have loaded what the programs need while Prefect itself starts, where the data are new.

    What goes wrong here is met again in the run, and told there. Remote data are not asked for
    twice.
    """
    if any(uri.startswith(("hf://", "s3://")) for uri in recipe.data.uris):
        return
    # Whatever it is: there is no run yet whose page could tell of it.
    with suppress(Exception):
        asked = _load_inputs(recipe, resolve(recipe.data.uri, "data"))
        _warm_up_for_new(asked, Room(store=recipe.store or default_store()))


def _load_inputs(recipe: Recipe, data: Source) -> LoadInputs:
    return LoadInputs(data=recipe.data, source=data, task=recipe.task)


def _warm_up_for_new(asked: LoadInputs, room: Room) -> None:
    """New data are examined, tokenized and trained on: have loaded what that needs."""
    if load.known(asked, room) is None:
        warm_up()


def prepare(recipe: Recipe, room: Room, report: RunReport) -> Prepared:
    """Load the data, examine the base model, tokenize what is new."""
    report.doing("Resolving data and base model.")
    data = resolve(recipe.data.uri, "data")
    model = resolve(recipe.model.uri, "model")
    refuse_adapter(recipe, model)

    report.doing("Loading the data.")
    asked = _load_inputs(recipe, data)
    _warm_up_for_new(asked, room)
    loaded = load(asked, room)
    report.made("load", loaded, _load_sentence(loaded, room.run_id))
    report.section("Data", data_section(loaded, recipe, room))

    model, unpacked = unpack_base(model, room, report)
    inspected = examine(
        ExamineInputs(
            model=model,
            labels=loaded.labels,
            task=recipe.task,
            chat_template=recipe.model.chat_template,
        ),
        room,
    )
    report.made("examine", inspected, f"{inspected.architecture}, {inspected.parameters:,} weights")
    refuse_early(recipe, model, loaded, inspected)
    guard = load_guard(recipe, inspected.artifact, room)
    if guard:
        rows = guard.loaded.rows["test"]
        report.made("guard set", guard.loaded, f"{rows:,} examples, for {guard.task}")

    report.doing("Tokenizing what is new.")
    tokenized = tokenize(
        TokenizeInputs(
            dataset=loaded.artifact,
            tokenizer=inspected.artifact,
            max_length=recipe.training.max_length,
            task=recipe.task,
            too_long=recipe.training.too_long,
        ),
        room,
    )
    report.made("tokenize", tokenized, _tokenize_sentence(tokenized, room.run_id))
    if recipe.task != "text-classification":
        report.section("What is learnt", samples_markdown(token_samples(tokenized, room)))
    report.warn(*inspected.warnings, *tokenized.warnings)
    return Prepared(data, model, loaded, inspected, tokenized, guard, unpacked)


def unpack_base(model: Source, room: Room, report: RunReport) -> tuple[Source, Unpacked | None]:
    """The base model as all steps can load it, and what was unpacked where it is a GGUF file."""
    if not is_gguf(model):
        return model, None
    report.doing("Unpacking the base model.")
    made = unpack(UnpackInputs(model=model), room)
    size = made.artifact.bytes
    report.made("unpack", made, f"{made.architecture} in {made.dtype}, {size / 1e6:,.0f} MB")
    return as_source(model, made.artifact, room), made


def settle_plan(
    recipe: Recipe, ready: Prepared, room: Room, report: RunReport
) -> tuple[Plan, Forecast | None]:
    """How it will be trained, and for a language model what that will take; refuses what will not
    fit."""
    tokens = ready.tokenized.tokens
    architecture = ready.inspected.architecture
    plan, told = make_plan(recipe, tokens, architecture=architecture), None
    if recipe.task != "text-classification":
        told = tell(recipe, ready.model, ready.inspected, ready.tokenized, ready.loaded, plan, room)
        refuse_memory(recipe, told, gguf_base=ready.unpacked is not None)
        report.warn(*scoring_warnings(ready.inspected, told))
        plan = make_plan(recipe, tokens, told, architecture)
        work = workload(recipe, ready.inspected, ready.tokenized, ready.loaded, plan, room)
        report.section("Forecast", forecast_markdown(told, work))
    picks = [f"- {name}: {getattr(plan, name)}, for {why}" for name, why in plan.why.items()]
    report.section("Plan", "\n".join(picks))
    return plan, told


def fit(
    recipe: Recipe,
    ready: Prepared,
    plan: Plan,
    told: Forecast | None,
    room: Room,
    report: RunReport,
) -> Finetuned:
    """Train."""
    report.doing("Training.")
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
    if finetune.known(asked, room) is None:
        # A new model will be judged: scipy and scikit-learn take seconds to load, so meanwhile.
        Thread(target=import_module, args=("tasks.judging.judge",), daemon=True).start()
    finetuned = finetune(asked, room)
    if told:
        remember_throughput(recipe, ready.inspected, plan, finetuned, room)
    report.made("finetune", finetuned, _finetune_sentence(finetuned))
    report.warn(*finetuned.warnings)
    report.section("Training", loss_curve(finetuned.history))
    return finetuned


def data_section(loaded: Loaded, recipe: Recipe, room: Room) -> str:
    """The data report, with what changed since the deployed release's data."""
    store = open_store(room.store)
    deployed = ledger.deployed(store, recipe.name, recipe.announce.channel)
    before = provenance_of(deployed.release, store)["data_report"] if deployed else None
    return data_markdown(data_report(loaded, store), before)


def _load_sentence(loaded: Loaded, run_id: str) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in loaded.rows.items())
    return f"{rows}; {_shards(loaded, 'read', run_id)}"


def _tokenize_sentence(tokenized: Tokenized, run_id: str) -> str:
    learnt = f", {tokenized.learnt:,} of them learnt" if tokenized.learnt else ""
    left_out = f", {tokenized.left_out:,} left out" if tokenized.left_out else ""
    return (
        f"{tokenized.tokens:,} tokens{learnt}, {tokenized.truncated:,} texts cut{left_out}; "
        f"{_shards(tokenized, 'tokenized', run_id)}"
    )


def _shards(result: Loaded | Tokenized, verb: str, run_id: str) -> str:
    new = result.new_shards if result.made and result.made.run_id == run_id else 0
    return f"{new} of {result.shards} shards {verb} anew"


def _finetune_sentence(finetuned: Finetuned) -> str:
    metrics = finetuned.metrics
    shown = "accuracy" if "f1" in metrics else "loss"
    return (
        f"{finetuned.steps} steps, validation {shown} {metrics[shown]:.4f}, "
        f"best epoch {finetuned.best_epoch:g}"
    )
