"""Trains an adapter (and the head of a classifier), and writes the model that ships.

Job: `FinetuneJob`.

It may run as `plan.world_size` processes: each trains on its share of every batch, and rank 0
writes the shared files.

The same job gives the same bytes on the same kind of machine, interrupted or not, unless the model
has an operation that is not reproducible there: the result then warns of it.

Checkpoints (`tasks.training.checkpoints`) are folders `checkpoints/checkpoint-STEP` of `work`. A
progress report names each as `checkpoint` once it is complete.
"""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path
from typing import Any, Protocol

# cuBLAS reads this when it starts; without it, deterministic mode refuses matrix products.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from transformers import Trainer, TrainerCallback, TrainerState, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from tasks.contracts.errors import BadRecipe
from tasks.contracts.jobs import FinetuneJob, FinetuneResult
from tasks.contracts.plan import Plan
from tasks.models import adapter as adapter_
from tasks.models import distributed
from tasks.runtime import ranks
from tasks.runtime.program import Reporter, run
from tasks.training import allocator
from tasks.training.callbacks import BestEpoch
from tasks.training.checkpoints import (
    Checkpoints,
    EndedEarly,
    Resumed,
    complete_checkpoint,
    saved_state,
)
from tasks.training.history import history, unmoved

# What torch says of an operation without a deterministic version.
_NOT_DETERMINISTIC = " does not have a deterministic implementation"


class Task(Protocol):
    """What differs between tasks.

    Attributes:
        names: The metrics of the validation split, including `loss`.
        warnings: Warnings about the training, for the report.
    """

    names: tuple[str, ...]
    warnings: list[str]

    def examples(self, split: str, file: Path) -> Any:
        """Write the examples of a split to a file, and return them memory-mapped."""

    def model(self, merging: bool = False) -> Any:
        """Return the base model with a new adapter: for training, or, to merge, with a dequantized
        base in host memory."""

    def trainer(
        self, model: Any, train: Any, validation: Any, callbacks: list[TrainerCallback]
    ) -> Trainer:
        """Return the Trainer for a model and its data."""

    def merge(self, model: Any) -> Any:
        """Return the model with its adapter merged, in the dtype of the base model's files."""

    def write_check(self, validation: Any, file: Path) -> None:
        """Write the examples of the loss check; see `tasks.training.loss_check`."""

    def finish(self, model: Any, out: Path) -> None:
        """Write the files that ship with the weights, such as the tokenizer."""


def main(job: FinetuneJob, reporter: Reporter) -> FinetuneResult | None:
    """Train the model and write it; see the module docstring.

    Returns:
        The result on rank 0, None on the others.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
        Preempted: The program was asked to stop, and saved a checkpoint.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work = job.work
    work.mkdir(parents=True, exist_ok=True)
    if job.tight_memory:
        allocator.tighten()
    prepare(job.plan, job.training.seed)
    task = make_task(job)
    reporter.progress(always=True, stage="reading data")
    train, validation = (
        task.examples(split, work / f"{split}.arrow") for split in ("train", "validation")
    )
    reporter.progress(
        always=True, stage="loading model", train=len(train), validation=len(validation)
    )
    best, state, trained = train_model(job, task, train, validation, reporter)
    distributed.leave()
    if ranks.rank() > 0:
        return None
    _free_training_memory()
    reporter.check_stop()
    reporter.progress(always=True, stage="writing model")
    task.write_check(validation, job.check_out)
    ship(job, best.adapter)
    logged = history(state, task.names)
    return FinetuneResult(
        metrics={name: best.metrics[name] for name in task.names},
        check_loss=best.check_loss,
        history=tuple(logged),
        best_epoch=best.epoch,
        steps=state.global_step,
        trained_parameters=trained,
        warnings=(*task.warnings, *filter(None, [unmoved(logged)])),
    )


def ship(job: FinetuneJob, adapter: Path) -> None:
    """Write the model that ships.

    Args:
        job: The program's job.
        adapter: File of the best epoch's trained tensors.
    """
    out, task = job.out, make_task(_without_sharding(job))
    out.mkdir(parents=True, exist_ok=True)
    merging = job.ship == "merged"
    model = task.model(merging)
    if merging:
        adapter_.load_adapter(model, adapter)
        model = task.merge(model)
        adapter_.save_merged(model, out)
    else:
        adapter_.export_adapter(model, adapter, out, job.base_pin, job.quantization)
    task.finish(model, out)


def _free_training_memory() -> None:
    """Free the trained model before the base model is loaded again. The model and its Trainer refer
    to each other, so only the garbage collector frees them."""
    gc.collect()
    torch.cuda.empty_cache()


def _without_sharding(job: FinetuneJob) -> FinetuneJob:
    """Return the job for a single process: on the CPU if the model was sharded, since it may be too
    large for one GPU."""
    plan = job.plan
    if plan.sharding != "fsdp":
        return job
    plan = plan.model_copy(update={"device": "cpu", "sharding": "ddp"})
    return job.model_copy(update={"plan": plan})


def make_task(job: FinetuneJob) -> Task:
    """Return the implementation of the job's task."""
    # Each imports libraries that the others do not need.
    name = job.task
    if name == "text-classification":
        from tasks.training.classification import Classification

        return Classification(job)
    if name == "preference":
        from tasks.training.preference import Preference

        return Preference(job)
    from tasks.training.language import Language

    return Language(job)


def prepare(plan: Plan, seed: int) -> None:
    """Set up this process for deterministic training.

    Raises:
        BadRecipe: This machine lacks the plan's device.
    """
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise BadRecipe(
            "plan.device",
            "cuda, on a worker without a usable GPU",
            "a CUDA device",
            "run it in a work pool with GPUs, or leave the pool empty",
        )
    if plan.device == "cuda" and ranks.local_rank() >= torch.cuda.device_count():
        raise BadRecipe(
            "plan.processes",
            f"{ranks.count()} processes, on a worker with {torch.cuda.device_count()} GPUs",
            "a GPU for each process",
            "set plan.processes to 0: one process per GPU",
        )
    distributed.join(plan.device)
    # Before the adapter is initialized, or its weights would differ in every run.
    set_seed(seed)
    # Strictly: if this only warned, the backward passes of attention on CUDA would not be
    # deterministic, although they can be.
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # Deterministic mode also fills new memory with NaN. That helps debugging only, and takes a
    # quarter of a step on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False


def train_model(
    job: FinetuneJob, task: Task, train: Any, validation: Any, reporter: Reporter
) -> tuple[BestEpoch, TrainerState, int]:
    """Train the adapter.

    A model with an operation that has no deterministic version is trained without determinism,
    with a warning.

    Returns:
        The best epoch, the Trainer's final state, and the number of trained parameters.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
        Preempted: The program was asked to stop, and saved a checkpoint.
    """
    try:
        return _train(job, task, train, validation, reporter)
    except RuntimeError as error:
        operation, found, _ = str(error).partition(_NOT_DETERMINISTIC)
        if not found:
            raise
    # Outside the handler, which would keep the tensors of the failed pass alive.
    _free_training_memory()
    torch.use_deterministic_algorithms(True, warn_only=True)
    set_seed(job.training.seed)
    _warn(
        task,
        "trained anew, this model may differ in its last digits: "
        f"{operation.split()[-1] if operation else 'an operation'} is not reproducible on this "
        f"kind of device ({job.plan.device})",
    )
    return _train(job, task, train, validation, reporter)


def _train(
    job: FinetuneJob, task: Task, train: Any, validation: Any, reporter: Reporter
) -> tuple[BestEpoch, TrainerState, int]:
    # The model and the optimizer are local to this function, so that they can be freed before
    # shipping loads the base model again.
    work, training = job.work, job.training
    resume, saved = complete_checkpoint(job.resume_from), saved_state(job.resume_from)
    best = BestEpoch(work / "best", training.best_by, training.early_stopping, resume, task.names)
    model = task.model()
    reporter.check_stop()
    checkpoints = Checkpoints(
        reporter, best, training.checkpoint_minutes, job.stop_seconds, task.warnings
    )
    resumed = [Resumed(saved, best, job.halvings)] if saved else []
    callbacks: list[Any] = [best, checkpoints, *resumed]
    trainer = task.trainer(model, train, validation, callbacks)
    for callback in callbacks[1:]:
        callback.trainer = trainer
    _warn(task, *(saved.warnings if saved else ()))
    trainer.remove_callback(PrinterCallback)
    reporter.check_stop()
    if ranks.count() > 1:
        # The adapter was initialized with the same seed on all ranks, but dropout must differ.
        torch.manual_seed(training.seed + ranks.rank())
    with contextlib.suppress(EndedEarly):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if checkpoints.stopped:
        raise checkpoints.preempted()
    return best, trainer.state, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _warn(task: Task, *sentences: str) -> None:
    task.warnings += [sentence for sentence in sentences if sentence not in task.warnings]


if __name__ == "__main__":
    run(main, FinetuneJob, graceful=True)
