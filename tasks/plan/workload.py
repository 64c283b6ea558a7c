"""How much a training has to do, and how fast similar ones went on this kind of device."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

import orjson

from tasks.contracts.base import Contract, digest_of
from tasks.contracts.forecast import Workload
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_training import LoraRecipe
from tasks.contracts.results import Finetuned, Loaded, Tokenized
from tasks.runtime.context import RunContext
from tasks.storage.store import open_store


class TrainingKind(Contract):
    """What decides a training's throughput, apart from the device.

    Attributes:
        architecture: The base model's class in transformers.
        shape: Its sizes, as the inspect step found them.
    """

    architecture: str
    shape: dict[str, int]
    task: Task
    lora: LoraRecipe
    quantization: str
    plan: Plan


def longest_sequence(task: Task, longest: int, max_length: int) -> int:
    """Tokens of the longest sequence that is trained on at once.

    Args:
        task: The two sides of a preference pair go together.
        longest: Tokens of the longest example.
        max_length: Tokens that it is truncated to.
    """
    sides = 2 if task == "preference" else 1
    return max(2, min(longest, max_length) * sides)


def tokens_of_large_step(tokenized: Tokenized, loaded: Loaded, examples: int, longest: int) -> int:
    """Tokens of a large optimizer step on one device: of examples twice as long as the mean, and
    no more than there can be. Rounded up to a power of two, so that one more row of data needs no
    other forecast.

    Args:
        examples: Examples per step on one device.
        longest: Tokens of the longest sequence.
    """
    mean = tokenized.tokens / max(1, sum(loaded.rows.values()))
    likely = 2 ** math.ceil(math.log2(max(1.0, 2 * mean * examples)))
    return max(longest, min(likely, examples * longest))


def target_share(tokenized: Tokenized) -> float:
    """Share of the tokens that the loss is computed on, rounded up to hundredths, so that one more
    row of data needs no other forecast."""
    return math.ceil(100 * tokenized.target_tokens / max(1, tokenized.tokens)) / 100


class WorkloadInputs(Contract):
    """A training and its data.

    Attributes:
        device_kind: Of the machine that trains.
    """

    kind: TrainingKind
    device_kind: str
    loaded: Loaded
    tokenized: Tokenized
    batch_size: int
    epochs: int


def workload(inputs: WorkloadInputs, context: RunContext) -> Workload:
    """How much there is to do, and the throughput of the last similar training on this kind of
    device."""
    rows = inputs.loaded.rows
    device = inputs.device_kind
    measured = open_store(context.store).read_json(_throughput_path(inputs.kind, device))
    return Workload(
        tokens=round(inputs.tokenized.tokens * rows["train"] / max(1, sum(rows.values()))),
        epochs=inputs.epochs,
        steps=math.ceil(rows["train"] / inputs.batch_size) * inputs.epochs,
        device_kind=device,
        tokens_per_second=float(measured["tokens_per_second"]) if measured else 0.0,
    )


def remember_throughput(
    kind: TrainingKind, device: str, finetuned: Finetuned, context: RunContext
) -> None:
    """Store a training's throughput for the next forecast, if this run trained: a reused result may
    have been made on another machine.

    Args:
        kind: The training.
        device: The kind of device that trained.
        finetuned: Its result.
        context: The run.
    """
    provenance = finetuned.provenance
    if not finetuned.tokens_per_second or not provenance or provenance.run_id != context.run_id:
        return
    entry = {
        "tokens_per_second": finetuned.tokens_per_second,
        "device": device,
        "world_size": kind.plan.world_size,
        "run": provenance.run_id,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    open_store(context.store).objects.write(_throughput_path(kind, device), orjson.dumps(entry))


def _throughput_path(kind: TrainingKind, device: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"throughput/{slug}/{digest_of(kind)}.json"
