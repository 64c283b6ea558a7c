"""Fine-tune: train an adapter and a head, and make the files that ship."""

from __future__ import annotations

from pathlib import Path

import orjson
from pydantic import Field

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.base import Contract
from tasks.contracts.jobs import (
    CheckGgufJob,
    Done,
    ExportGgufJob,
    ExportGgufResult,
    FinetuneJob,
    FinetuneResult,
    PinnedBase,
    TokenShard,
)
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
    code=(
        "tasks.finetune.step",
        "tasks.finetune.program",
        "tasks.finetune.gguf_check_program",
        "tasks.finetune.gguf_export_program",
    ),
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
            _check_gguf(inputs.gguf, base, store.open(inputs.tokenizer), scratch)
        job = FinetuneJob(
            task=inputs.task,
            base=base,
            base_pin=PinnedBase(uri=inputs.model.pinned, digest=inputs.model.digest),
            tokenizer=store.open(inputs.tokenizer),
            shards=token_files(inputs.tokens, context),
            keep_file=store.open(inputs.dataset) / "keep.npz",
            labels=inputs.labels,
            head_modules=inputs.head_modules,
            lora=inputs.lora,
            quantization=inputs.quantization,
            training=inputs.training,
            plan=inputs.plan,
            ship=inputs.ship,
            micro_batch_examples=0,
            micro_batch_tokens=inputs.micro_batch_tokens,
            max_micro_batch_tokens=inputs.most_tokens,
            tight_memory=inputs.tight_memory,
            work=scratch / "checkpoints",
            resume_from=None,
            out=out,
        )
        found = run_program(
            "tasks.finetune.program",
            job,
            FinetuneResult,
            on_progress=progress.update,
            time_limit=inputs.training.time_limit_minutes * 60,
            limit_name="training.time_limit_minutes",
            scratch=scratch,
            processes=inputs.plan.world_size,
        )
        if inputs.gguf != "none":
            _export_gguf(inputs.gguf, out, scratch)
        return Finetuned(
            artifact=store.put("model", out),
            **dict(found),
            tokens_per_second=progress.tokens_per_second,
        )


def _check_gguf(file_type: str, base: Path, tokenizer: Path, scratch: Path) -> None:
    job = CheckGgufJob(
        converter=find_converter(),
        file_type=file_type,
        base=base,
        tokenizer=tokenizer,
        work=scratch,
    )
    run_program("tasks.finetune.gguf_check_program", job, Done, scratch=scratch)


def _export_gguf(file_type: str, model: Path, scratch: Path) -> None:
    job = ExportGgufJob(
        converter=find_converter(), file_type=file_type, model=model, work=scratch, out=model
    )
    run_program("tasks.finetune.gguf_export_program", job, ExportGgufResult, scratch=scratch)


def token_files(tokens: Artifact, context: RunContext) -> tuple[TokenShard, ...]:
    """The local token files of a dataset, one for each shard."""
    store = open_store(context.store)
    listed = orjson.loads((store.open(tokens) / "tokens.json").read_bytes())
    return tuple(
        TokenShard(digest=digest, tokens=store.open(Artifact(**artifact)) / "tokens.parquet")
        for digest, artifact in listed.items()
    )
