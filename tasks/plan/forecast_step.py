"""Forecast: what training a language model will take, told before a GPU is asked for."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

import orjson

from tasks.contracts.artifacts import Source
from tasks.contracts.base import Contract, digest_of
from tasks.contracts.forecast import Forecast, Workload
from tasks.contracts.plan import Plan
from tasks.contracts.recipe import Recipe
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_training import LoraRecipe
from tasks.contracts.results import Finetuned, Inspected, Loaded, Tokenized
from tasks.report.markdown import size_words
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.hardware import device_kind, found_memory, reserve_of
from tasks.runtime.run_program import run_program
from tasks.storage.sources import fetch_folder
from tasks.storage.store import open_store


class ForecastInputs(Contract):
    """All that decides the memory of training.

    Attributes:
        model: The base model; its configuration is read.
        task, lora, quantization, plan, ship: As for training.
        checkpointing: on, off, or auto for whatever memory asks for.
        micro_batch_tokens: Of one forward pass; 0: as many as fit.
        max_length: Tokens that no sequence exceeds.
        longest: Tokens of the longest example, both sides of a pair together.
        most_tokens: Of an optimizer step, on one device.
        target_share: Share of the tokens that are training targets.
        memory: Bytes of one device; 0 where nobody knows.
        reserve: Bytes of it that are left alone.
        host_memory: Bytes of the machine, where the adapter is merged; 0 where nobody knows.
        host_reserve: Bytes of it that are left alone.
        stored_bytes: Of one weight in the base's files.
        hardware: The kind of processor, where that trains: a forecast belongs to it.
    """

    model: Source
    task: Task
    lora: LoraRecipe
    quantization: str
    plan: Plan
    ship: str
    checkpointing: str
    micro_batch_tokens: int
    max_length: int
    longest: int
    most_tokens: int
    target_share: float
    memory: int
    reserve: int
    host_memory: int
    host_reserve: int
    stored_bytes: int
    hardware: str


@step(
    "forecast",
    result=Forecast,
    code=("tasks.plan.forecast_step", "tasks.plan.forecast_program"),
    libraries=("torch", "transformers", "peft", "bitsandbytes"),
)
def forecast(inputs: ForecastInputs, context: RunContext) -> Forecast:
    """Train one step without memory, and tell what it would have taken."""
    store = open_store(context.store)
    with store.scratch() as scratch:
        beside = {"model", "task", "reserve", "host_reserve", "hardware"}
        job = inputs.model_dump(mode="json", exclude=beside)
        job["base"] = str(fetch_folder(inputs.model, scratch / "base"))
        job["memory"] = max(0, inputs.memory - inputs.reserve)
        job["host_memory"] = max(0, inputs.host_memory - inputs.host_reserve)
        told = run_program("tasks.plan.forecast_program", job, scratch=scratch)
        facts = {
            **told,
            "device": inputs.plan.device,
            "memory": inputs.memory,
            "reserve": inputs.reserve,
            "host_memory": inputs.host_memory,
            "host_reserve": inputs.host_reserve,
            "longest": inputs.longest,
        }
        out = scratch / "forecast"
        out.mkdir()
        (out / "forecast.json").write_bytes(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS))
        return Forecast(artifact=store.put("forecast", out), **facts)


def tell(
    recipe: Recipe,
    model: Source,
    inspected: Inspected,
    tokenized: Tokenized,
    loaded: Loaded,
    plan: Plan,
    context: RunContext,
) -> Forecast:
    """What training by this recipe will take.

    Args:
        recipe: Of a language task.
        model, inspected: The base model.
        tokenized, loaded: The data.
        plan: From `make_plan`; its checkpointing is not believed where the recipe leaves it open.
        context: Where the step works.
    """
    sides = 2 if recipe.task == "preference" else 1
    longest = max(2, min(tokenized.longest, recipe.training.max_length) * sides)
    share = math.ceil(recipe.training.batch_size / plan.world_size)
    memory = found_memory(plan.device, recipe.plan.device_memory_gb)
    host = memory if plan.device == "cpu" else found_memory("cpu")
    return forecast(
        ForecastInputs(
            model=model,
            task=recipe.task,
            lora=recipe.lora,
            quantization=recipe.quantization,
            plan=plan.model_copy(update={"checkpointing": False, "why": {}}),
            ship=recipe.model.ship,
            checkpointing=recipe.plan.checkpointing,
            micro_batch_tokens=recipe.plan.micro_batch_tokens,
            max_length=recipe.training.max_length,
            longest=longest,
            most_tokens=_step_tokens(tokenized, loaded, share, longest),
            # To hundredths: one more row of data must not ask for another forecast.
            target_share=math.ceil(100 * tokenized.target_tokens / max(1, tokenized.tokens)) / 100,
            memory=memory,
            reserve=reserve_of(plan.device, memory),
            host_memory=host,
            host_reserve=reserve_of("cpu", host),
            stored_bytes=inspected.shape.get("stored_bytes", 4),
            hardware=device_kind("cpu") if plan.device == "cpu" else "",
        ),
        context,
    )


def _step_tokens(tokenized: Tokenized, loaded: Loaded, examples: int, longest: int) -> int:
    """Tokens of a large optimizer step: so many examples of twice the usual length, rounded up to
    a power of two (one more row of data must not ask for another forecast), and no more than there
    can be."""
    usual = tokenized.tokens / max(1, sum(loaded.rows.values()))
    likely = 2 ** math.ceil(math.log2(max(1.0, 2 * usual * examples)))
    return max(longest, min(likely, examples * longest))


def workload(
    recipe: Recipe,
    inspected: Inspected,
    tokenized: Tokenized,
    loaded: Loaded,
    plan: Plan,
    context: RunContext,
) -> Workload:
    """How much there is to do, and how fast it went on this kind of device before."""
    rows = loaded.rows["train"]
    tokens = round(tokenized.tokens * rows / max(1, sum(loaded.rows.values())))
    kind = device_kind(plan.device)
    seen = open_store(context.store).read_json(_throughput_place(kind, recipe, inspected, plan))
    return Workload(
        tokens=tokens,
        epochs=recipe.training.epochs,
        steps=math.ceil(rows / recipe.training.batch_size) * recipe.training.epochs,
        device_kind=kind,
        tokens_per_second=float(seen["tokens_per_second"]) if seen else 0.0,
    )


def remember_throughput(
    recipe: Recipe, inspected: Inspected, plan: Plan, finetuned: Finetuned, context: RunContext
) -> None:
    """Keep how fast a training went, for the next forecast. A result of another run tells nothing
    of this machine."""
    made = finetuned.provenance
    if not finetuned.tokens_per_second or not made or made.run_id != context.run_id:
        return
    kind = device_kind(plan.device)
    entry = {
        "tokens_per_second": finetuned.tokens_per_second,
        "device": kind,
        "world_size": plan.world_size,
        "run": made.run_id,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    open_store(context.store).objects.write(
        _throughput_place(kind, recipe, inspected, plan), orjson.dumps(entry)
    )


def _throughput_place(kind: str, recipe: Recipe, inspected: Inspected, plan: Plan) -> str:
    """Where the throughput of like trainings lies: of this model's shape, on this kind of device,
    with the same adapter and plan."""
    like = {
        "architecture": inspected.architecture,
        "shape": inspected.shape,
        "task": recipe.task,
        "lora": recipe.lora.key_part(),
        "quantization": recipe.quantization,
        "plan": plan.key_part(),
    }
    slug = re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")
    return f"throughput/{slug}/{digest_of(like)}.json"


def scoring_warnings(inspected: Inspected, told: Forecast) -> list[str]:
    """What a person should know of scoring: the model that ships merged, and a base that nothing
    was trained on, are scored whole, on the card, which may have been large enough to train on."""
    usable = told.memory - told.reserve
    whole = inspected.parameters * inspected.shape.get("stored_bytes", 4)
    if told.device != "cuda" or not told.memory or whole <= usable:
        return []
    return [
        f"Scoring reads whole models of {size_words(whole)}, and the card has room for "
        f"{size_words(usable)}: it will run out of memory there. What was trained is kept: a "
        "worker with a larger card goes on from it."
    ]
