"""Fine-tune: train an adapter and a head, and make the files that ship."""

from __future__ import annotations

from pathlib import Path

import orjson
from pydantic import Field

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.base import Contract
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe
from tasks.contracts.results import Finetuned
from tasks.report.progress import TrainingProgress
from tasks.runtime.cache import step
from tasks.runtime.code_digest import library_versions
from tasks.runtime.context import RunContext
from tasks.runtime.gguf_converter import converter_digest, find_converter
from tasks.runtime.run_program import run_program
from tasks.storage.sources import fetch_folder
from tasks.storage.store import open_store

LIGER = "liger-kernel"


class FinetuneInputs(Contract):
    """All that decides the trained weights.

    Attributes:
        model: The base model.
        tokenizer: As it ships.
        dataset, tokens: The data and its token ids.
        labels: In the order of the model's outputs.
        ship: `merged` or `adapter`.
        head_modules: The new head, which is trained in full.
        task: What it is trained for.
        micro_batch_tokens: Tokens of one forward pass of a language model; 0: the program picks.
        most_tokens: The most that it may pick, by the forecast; 0: it is not known.
        tight_memory: Whether memory goes back to the system at once, which takes longer.
        gguf: The type of the GGUF file that ships beside the merged model, or `none`.
        converter: What makes that file, by its digest; empty where none is made.
        fused: The version of what makes the plan's fused kernels; empty where there are none.
    """

    cache_key_excludes = frozenset({"micro_batch_tokens", "most_tokens", "tight_memory"})

    model: Source
    tokenizer: Artifact
    dataset: Artifact
    tokens: Artifact
    labels: tuple[str, ...]
    lora: LoraRecipe
    quantization: str
    training: TrainingRecipe
    plan: Plan
    ship: str
    head_modules: tuple[str, ...]
    task: Task = "text-classification"
    micro_batch_tokens: int = 0
    most_tokens: int = 0
    tight_memory: bool = False
    gguf: str = "none"
    converter: str = Field(
        default_factory=lambda known: converter_digest() if known["gguf"] != "none" else ""
    )
    fused: str = Field(
        default_factory=lambda known: (
            library_versions((LIGER,))[LIGER] if known["plan"].kernels == "liger" else ""
        )
    )


@step(
    "finetune",
    result=Finetuned,
    code=("tasks.finetune.step", "tasks.finetune.program", "tasks.finetune.gguf_export_program"),
    libraries=(
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "bitsandbytes",
        "safetensors",
        "tokenizers",
        "evaluate",
        "scikit-learn",
        "numpy",
        "pyarrow",
    ),
)
def finetune(inputs: FinetuneInputs, context: RunContext) -> Finetuned:
    """Train in a program of its own, and store the files that ship.

    Where a GGUF file ships too, it is made of the finished model, and it is tried before training
    whether it can be: it is the safetensors that are scored.

    Raises:
        BadModel: It cannot be converted to GGUF, and that is asked for.
        TrainingDiverged: The loss became NaN or infinite.
        OutOfDeviceMemory, OutOfHostMemory, Preempted, TimedOut: As the program's end tells.
    """
    store = open_store(context.store)
    with store.scratch() as scratch, TrainingProgress() as progress:
        out = scratch / "model"
        base = fetch_folder(inputs.model, scratch / "base")
        if inputs.gguf != "none":
            trial = {"base": str(base), "tokenizer": str(store.open(inputs.tokenizer))}
            _export_gguf(inputs.gguf, trial, scratch)
        result = run_program(
            "tasks.finetune.program",
            {
                "base": str(base),
                "base_pin": {"uri": inputs.model.pinned, "digest": inputs.model.digest},
                "tokenizer": str(store.open(inputs.tokenizer)),
                "shards": token_files(inputs.tokens, context),
                "keep": str(store.open(inputs.dataset) / "keep.npz"),
                "labels": list(inputs.labels),
                "lora": inputs.lora.model_dump(mode="json"),
                "quantization": inputs.quantization,
                "training": inputs.training.model_dump(mode="json"),
                "plan": inputs.plan.model_dump(mode="json"),
                "ship": inputs.ship,
                "head_modules": list(inputs.head_modules),
                "task": inputs.task,
                "micro_batch_tokens": inputs.micro_batch_tokens,
                "most_tokens": inputs.most_tokens,
                "tight_memory": inputs.tight_memory,
                "out": str(out),
                "work": str(scratch / "checkpoints"),
                "resume_from": None,
            },
            on_progress=progress.update,
            time_limit=inputs.training.time_limit_minutes * 60,
            limit_name="training.time_limit_minutes",
            scratch=scratch,
            processes=inputs.plan.world_size,
        )
        if inputs.gguf != "none":
            _export_gguf(inputs.gguf, {"model": str(out), "out": str(out)}, scratch)
        result["tokens_per_second"] = progress.tokens_per_second
        return Finetuned(artifact=store.put("model", out), **result)


def _export_gguf(kind: str, what: dict[str, str], scratch: Path) -> None:
    job = {"type": kind, "converter": str(find_converter()), "work": str(scratch)}
    run_program("tasks.finetune.gguf_export_program", job | what, scratch=scratch)


def token_files(tokens: Artifact, context: RunContext) -> list[dict[str, str]]:
    """For each shard its digest and the local path of its token ids."""
    store = open_store(context.store)
    listed = orjson.loads((store.open(tokens) / "tokens.json").read_bytes())
    return [
        {"digest": digest, "tokens": str(store.open(Artifact(**artifact)) / "tokens.parquet")}
        for digest, artifact in listed.items()
    ]
