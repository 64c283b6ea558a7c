"""Trains an adapter, and a classifier's head, and writes the files that ship.

Job: `FinetuneJob`.

It may run as `plan.world_size` processes: each trains on its share of every step, and the first one
writes the shared files.

The same job gives the same bytes on the same kind of machine, interrupted or not. A progress line
with `checkpoint` names a complete checkpoint; on disk (`work`/checkpoints/checkpoint-STEP) a
complete one has a file `complete`.
"""

from __future__ import annotations

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

from tasks.contracts.errors import BadRecipe, preempted
from tasks.contracts.jobs import FinetuneJob, FinetuneResult
from tasks.contracts.plan import Plan
from tasks.models import adapter as adapter_
from tasks.models import distributed
from tasks.runtime import ranks
from tasks.runtime.program import Reporter, run
from tasks.training import allocator
from tasks.training.callbacks import BestEpoch, CheckpointCallback, checkpoint
from tasks.training.history import history, unmoved


class Task(Protocol):
    """What differs between tasks.

    Attributes:
        names: The metrics of the validation split; `loss` is among them.
        warnings: What a person should know about the training.
    """

    names: tuple[str, ...]
    warnings: list[str]

    def examples(self, split: str, file: Path) -> Any:
        """Return the examples of a split, memory-mapped from a file that is written here."""

    def model(self, merging: bool = False) -> Any:
        """Return the base with a new adapter: for training, or on the dequantized base in host
        memory for merging."""

    def trainer(
        self, model: Any, train: Any, validation: Any, callbacks: list[TrainerCallback]
    ) -> Trainer:
        """Return the Trainer."""

    def merge(self, model: Any) -> Any:
        """Merge the adapter into the base, in the dtype of the base's files."""

    def finish(self, model: Any, out: Path) -> None:
        """Write the files that ship beside the weights."""


def main(job: FinetuneJob, reporter: Reporter) -> FinetuneResult | None:
    """See the module's description.

    Returns:
        The result; None on every rank but the first.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
        Preempted: The program was asked to stop; a checkpoint was saved.
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
    _give_back()
    reporter.progress(always=True, stage="writing model")
    ship(job, best.adapter)
    logged = history(state, task.names)
    return FinetuneResult(
        metrics={name: best.metrics[name] for name in task.names},
        history=tuple(logged),
        best_epoch=best.epoch,
        steps=state.global_step,
        trained_parameters=trained,
        warnings=(*task.warnings, *filter(None, [unmoved(logged)])),
    )


def ship(job: FinetuneJob, adapter: Path) -> None:
    """Write the model that is published.

    Args:
        job: The program's job.
        adapter: The trained tensors of the best epoch.
    """
    out, task = job.out, make_task(_as_one(job))
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


def _give_back() -> None:
    """Have what training held collected: the model and its Trainer name each other, and would stay
    on the device beside the base that is read once more."""
    gc.collect()
    torch.cuda.empty_cache()


def _as_one(job: FinetuneJob) -> FinetuneJob:
    """The job as one process ships it: a model that was shared out may be too large for one GPU."""
    plan = job.plan
    if plan.sharding != "fsdp":
        return job
    plan = plan.model_copy(update={"device": "cpu", "sharding": "ddp"})
    return job.model_copy(update={"plan": plan})


def make_task(job: FinetuneJob) -> Task:
    """What is particular to the job's task."""
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
        BadRecipe: The plan's device is not on this machine.
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
            "set plan.processes to 0: one process for each GPU",
        )
    distributed.join(plan.device)
    # Before the adapter is initialized: from an unseeded state it would differ every time.
    set_seed(seed)
    # A few CUDA kernels have no deterministic version, so on CUDA this only warns.
    torch.use_deterministic_algorithms(True, warn_only=plan.device == "cuda")
    torch.backends.cudnn.benchmark = False
    # Deterministic mode also fills new memory with NaN, to reveal reads of uninitialized memory.
    # It is for debugging, and takes a quarter of a step on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False


def train_model(
    job: FinetuneJob, task: Task, train: Any, validation: Any, reporter: Reporter
) -> tuple[BestEpoch, TrainerState, int]:
    """Train the adapter.

    Returns:
        The best epoch, the Trainer's final state, and the number of trained parameters.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
        Preempted: The program was asked to stop; a checkpoint was saved.
    """
    # Model and optimizer are freed when this function returns: shipping loads the base again.
    work, training = job.work, job.training
    resume = checkpoint(job.resume_from)
    best = BestEpoch(work / "best", training.best_by, training.early_stopping, resume, task.names)
    model = task.model()
    reporter.check_stop()
    trainer = task.trainer(model, train, validation, [best, CheckpointCallback(reporter, best)])
    trainer.remove_callback(PrinterCallback)
    reporter.check_stop()
    if ranks.count() > 1:
        # The adapter was initialized with the same seed on all ranks; dropout must differ.
        torch.manual_seed(training.seed + ranks.rank())
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    state = trainer.state
    if not best.ended and state.global_step < state.max_steps:
        raise preempted(f"a checkpoint of step {state.global_step} was saved")
    return best, state, sum(p.numel() for p in model.parameters() if p.requires_grad)


if __name__ == "__main__":
    run(main, FinetuneJob, graceful=True)
