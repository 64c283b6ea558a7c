"""Fine-tune an adapter (and the head of a classifier), and store the model that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.base import Contract
from tasks.contracts.errors import Hung, OutOfDeviceMemory
from tasks.contracts.jobs import FinetuneJob, FinetuneResult, PinnedBase, TokenShard
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe
from tasks.contracts.results import Finetuned
from tasks.finetune.checkpoint_store import (
    CheckpointStore,
    Resumable,
    remove_abandoned,
    remove_checkpoints,
)
from tasks.report.progress import TrainingProgress
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.run_program import run_program
from tasks.storage.sources import fetch_folder
from tasks.storage.store import open_store

# Of a checkpoint after a request to stop; `run_program` kills the program after some more.
_SECONDS_TO_SAVE = 15.0
_HALVINGS = 3


class FinetuneInputs(Contract):
    """Everything that decides the trained weights.

    Attributes:
        model: The base model.
        tokenizer: The tokenizer that ships with the model.
        dataset, tokens: The data and its token ids.
        labels: Labels of a classifier, in the order of its outputs.
        ship: `merged` or `adapter`.
        head_modules: The modules of a classifier's new head, which are trained in full.
        task: The task that the model is trained for.
        micro_batch_tokens: Tokens per forward pass of a language model; 0: the program chooses.
        max_micro_batch_tokens: The most that it may choose, from the forecast; 0 if unknown.
        tight_memory: Whether freed memory is returned to the system at once, which is slower.
        liger_version: The version of liger-kernel where it is trained; empty if the plan does not
            use it.
    """

    cache_key_excludes = frozenset({"micro_batch_tokens", "max_micro_batch_tokens", "tight_memory"})

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
    max_micro_batch_tokens: int = 0
    tight_memory: bool = False
    liger_version: str = ""


@step(
    "finetune",
    result=Finetuned,
    code=("tasks.finetune.step", "tasks.finetune.program"),
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
    exclusive=True,
    on_pool=True,
    tidy=remove_checkpoints,
)
def finetune(inputs: FinetuneInputs, context: RunContext) -> Finetuned:
    """Train in a separate process, and store the model that ships. A training that was interrupted
    goes on from its newest checkpoint.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
        OutOfDeviceMemory: Even an eighth of the planned micro-batch did not fit.
        OutOfHostMemory, Preempted, TimedOut: The program ended without a result.
        Hung: The program stood still, twice.
    """
    remove_abandoned(context)
    halvings, warnings, hung_before = 0, [], False
    while True:
        try:
            finetuned = _train(inputs, context, halvings)
        except Hung as hung:
            if hung_before:
                raise
            hung_before = True
            warnings.append(
                f"{hung.where} was ended ({hung.found}), and started again. {hung.kept}"
            )
        except OutOfDeviceMemory as error:
            if halvings == _HALVINGS:
                raise
            halvings += 1
            warnings.append(
                f"Device memory was too small ({error.found}): training went on with micro-batches "
                f"of 1/{2**halvings} of the planned size, so another training may differ from this "
                f"one in the last bits. {error.kept}"
            )
        else:
            return finetuned.model_copy(update={"warnings": (*warnings, *finetuned.warnings)})
        run_logger().warning(warnings[-1])


def _train(inputs: FinetuneInputs, context: RunContext, halvings: int) -> Finetuned:
    """Train once, from the newest checkpoint: if the training is to be refreshed, the newest that
    this run has written itself."""
    store = open_store(context.store)
    with store.scratch() as scratch, TrainingProgress() as progress:
        checkpoints = CheckpointStore(finetune.key(inputs), context, scratch)
        resumed = checkpoints.newest(own="finetune" in context.refresh)
        if resumed:
            run_logger().info("Training goes on from %s.", resumed.origin)
        job = _job(inputs, context, scratch, resumed, halvings)

        def update(line: dict[str, Any]) -> None:
            checkpoints.update(line)
            progress.update(line)

        try:
            result = run_program(
                "tasks.finetune.program",
                job,
                FinetuneResult,
                on_progress=update,
                time_limit=inputs.training.time_limit_minutes * 60,
                limit_name="training.time_limit_minutes",
                scratch=scratch,
                processes=inputs.plan.world_size,
                stall_seconds=inputs.training.stall_minutes * 60,
                stall_name="training.stall_minutes",
            )
        except BaseException as error:
            # The report of a run says it, whatever ended it.
            error.kept = checkpoints.close()
            raise
        checkpoints.close()
        found = dict(result)
        return Finetuned(
            artifact=store.put("model", job.out),
            check=store.put("loss-check", job.check_out.parent),
            **found | {"warnings": (*checkpoints.warnings, *result.warnings)},
            tokens_per_second=progress.tokens_per_second,
            resumed=resumed.origin if resumed else "",
        )


def _job(
    inputs: FinetuneInputs,
    context: RunContext,
    scratch: Path,
    resumed: Resumable | None,
    halvings: int,
) -> FinetuneJob:
    store = open_store(context.store)
    return FinetuneJob(
        task=inputs.task,
        base=fetch_folder(inputs.model, scratch / "base"),
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
        max_micro_batch_tokens=inputs.max_micro_batch_tokens,
        halvings=halvings,
        tight_memory=inputs.tight_memory,
        work=scratch / "checkpoints",
        resume_from=resumed.folder if resumed else None,
        stop_seconds=_SECONDS_TO_SAVE,
        out=scratch / "model",
        check_out=scratch / "check" / "examples.parquet",
    )


def token_files(tokens: Artifact, context: RunContext) -> tuple[TokenShard, ...]:
    """Return the local token files, one per shard.

    Args:
        tokens: The artifact of the tokenize step.
        context: The run.
    """
    store = open_store(context.store)
    listed = orjson.loads((store.open(tokens) / "tokens.json").read_bytes())
    return tuple(
        TokenShard(digest=digest, tokens=store.open(Artifact(**artifact)) / "tokens.parquet")
        for digest, artifact in listed.items()
    )
