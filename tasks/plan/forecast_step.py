"""Forecast: the memory that training a language model needs, before a GPU is requested."""

from __future__ import annotations

from pathlib import Path

import orjson

from tasks.contracts.artifacts import Source
from tasks.contracts.base import Contract
from tasks.contracts.forecast import Forecast
from tasks.contracts.jobs import ForecastJob, ForecastResult
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_training import LoraRecipe
from tasks.contracts.results import Inspected
from tasks.report.markdown import size_words
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.run_program import run_program
from tasks.storage.sources import fetch_folder
from tasks.storage.store import open_store


class ForecastInputs(Contract):
    """What the memory of training depends on.

    Attributes:
        model: The base model; its configuration is read.
        task, lora, quantization, plan, ship: As for training.
        checkpointing: on, off, or auto: only if memory is short.
        micro_batch_tokens: Tokens of one forward pass; 0: as many as fit.
        max_length: Tokens that no sequence exceeds.
        longest: Tokens of the longest example, both sides of a pair together.
        most_tokens: Tokens of an optimizer step on one device.
        target_share: Share of the tokens that are training targets.
        memory: Bytes of one device; 0 if unknown.
        reserve: Bytes of it that training leaves free.
        host_memory: Bytes of the machine, where the adapter is merged; 0 if unknown.
        host_reserve: Bytes of it that training leaves free.
        stored_bytes: Bytes of one weight in the base's files.
        hardware: The kind of processor if it is the one that trains; empty on a GPU.
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
    """Trace one training step without memory, and measure what it would take."""
    store = open_store(context.store)
    with store.scratch() as scratch:
        job = _job(inputs, fetch_folder(inputs.model, scratch / "base"))
        found = run_program("tasks.plan.forecast_program", job, ForecastResult, scratch=scratch)
        facts = {
            **found.model_dump(mode="json"),
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


def _job(inputs: ForecastInputs, base: Path) -> ForecastJob:
    return ForecastJob(
        base=base,
        lora=inputs.lora,
        quantization=inputs.quantization,
        plan=inputs.plan,
        ship=inputs.ship,
        checkpointing=inputs.checkpointing,
        micro_batch_tokens=inputs.micro_batch_tokens,
        max_length=inputs.max_length,
        longest_example=inputs.longest,
        step_tokens=inputs.most_tokens,
        target_share=inputs.target_share,
        memory=max(0, inputs.memory - inputs.reserve),
        host_memory=max(0, inputs.host_memory - inputs.host_reserve),
        stored_bytes=inputs.stored_bytes,
    )


def scoring_warnings(inspected: Inspected, forecast: Forecast) -> list[str]:
    """What a person should know of scoring: the model that ships merged, and a base that nothing
    was trained on, are scored whole, on the card, which may have been large enough to train on."""
    usable = forecast.memory - forecast.reserve
    whole = inspected.parameters * inspected.shape.get("stored_bytes", 4)
    if forecast.device != "cuda" or not forecast.memory or whole <= usable:
        return []
    return [
        f"Scoring reads whole models of {size_words(whole)}, and the card has room for "
        f"{size_words(usable)}: it will run out of memory there. What was trained is kept: a "
        "worker with a larger card goes on from it."
    ]
