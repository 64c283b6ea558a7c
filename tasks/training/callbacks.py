"""What the training of all tasks shares: its settings, and what happens around its steps."""

from __future__ import annotations

import json
import math
import resource
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.contracts.errors import TrainingDiverged
from tasks.contracts.jobs import FinetuneJob
from tasks.models import adapter as adapter_
from tasks.models import distributed
from tasks.runtime import ranks

if TYPE_CHECKING:
    from tasks.runtime.program import Reporter

CLASSIFICATION = ("loss", "accuracy", "precision", "recall", "f1")
"""The metrics of a classifier."""

_SECONDS_BETWEEN_CHECKPOINTS = 600.0
_POINTS_IN_HISTORY = 200
_COMPLETE = "complete"
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
_LOWER = ("loss", "perplexity")


def arguments(job: FinetuneJob, examples: int, **changes: Any) -> TrainingArguments:
    """Settings of the Trainer.

    Args:
        job: The program's job.
        examples: In the training split.
        **changes: What a task has otherwise.
    """
    training, plan = job.training, job.plan
    steps = math.ceil(examples / training.batch_size) * training.epochs
    options: dict[str, Any] = {
        "output_dir": str(job.work / "checkpoints"),
        "num_train_epochs": training.epochs,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": _SCHEDULES[training.schedule],
        "warmup_steps": math.ceil(training.warmup * steps),
        "weight_decay": training.weight_decay,
        "optim": plan.optimizer,
        "bf16": plan.precision == "bf16",
        "use_cpu": plan.device == "cpu",
        "seed": training.seed,
        "eval_strategy": "epoch",
        # Checkpoints are saved by `CheckpointCallback`, which knows when one is worth its time.
        "save_strategy": "no",
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": max(1, steps // _POINTS_IN_HISTORY),
        # Else a NaN is replaced by the mean of the other losses, and nobody sees it.
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": plan.device == "cuda",
        "disable_tqdm": True,
        "report_to": [],
    }
    return TrainingArguments(**options | changes)


class BestEpoch(TrainerCallback):
    """Keeps the weights of the best epoch, also across interruptions, and stops early.

    The Trainer's own way remembers a path, which is void on another machine. Here the weights
    travel inside each checkpoint. Of several processes, all decide alike, and the first one writes.

    Args:
        folder: Where they are kept.
        metric: What is compared; of equal epochs the first is kept.
        patience: Epochs without a better one after which training stops; 0 for never.
        resume: A checkpoint to take the best so far from.
        names: The metrics that are kept of each epoch.
    """

    def __init__(
        self,
        folder: Path,
        metric: str,
        patience: int,
        resume: Path | None,
        names: tuple[str, ...] = CLASSIFICATION,
    ) -> None:
        self._folder, self._metric, self._patience = folder, metric, patience
        self.names = names
        self.epoch, self.worse, self.ended = 0.0, 0, False
        self.metrics: dict[str, float] = {}
        self._first = ranks.rank() == 0
        before = resume / "best" if resume else None
        if before and (before / "best.json").is_file():
            facts = json.loads((before / "best.json").read_text())
            self.epoch, self.worse, self.metrics = (
                facts[name] for name in ("epoch", "worse", "metrics")
            )
        if self._first:
            shutil.rmtree(folder, ignore_errors=True)
            if self.metrics:
                shutil.copytree(before, folder)
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def adapter(self) -> Path:
        """The trained tensors of the best epoch."""
        return self._folder / "adapter.safetensors"

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        model: Any,
        **_: Any,
    ) -> None:
        """Compare this epoch with the best so far."""
        found = {name: metrics[f"eval_{name}"] for name in self.names}
        if not math.isfinite(found["loss"]):
            raise diverged(f"validation loss {found['loss']} after step {state.global_step}")
        if self._better(found):
            self.metrics, self.epoch, self.worse = found, round(state.epoch, 4), 0
            if self._first:
                adapter_.save_adapter(model, self.adapter)
        else:
            self.worse += 1
            if self._patience and self.worse >= self._patience:
                self.ended = control.should_training_stop = True
        if self._first:
            facts = {"epoch": self.epoch, "worse": self.worse, "metrics": self.metrics}
            (self._folder / "best.json").write_text(json.dumps(facts, sort_keys=True))

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Put the best so far into the checkpoint."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # Each process has a file of its own in it.
        distributed.barrier()
        if self._first:
            shutil.copytree(self._folder, checkpoint / "best", dirs_exist_ok=True)
            # The last file that is written: a checkpoint without it is half a checkpoint.
            (checkpoint / _COMPLETE).touch()
        # Else one that leaves takes the first with it, before it is done.
        distributed.barrier()

    def _better(self, found: dict[str, float]) -> bool:
        if not self.metrics:
            return True
        gain = found[self._metric] - self.metrics[self._metric]
        return gain < 0 if self._metric in _LOWER else gain > 0


class CheckpointCallback(TrainerCallback):
    """Reports progress, and decides when a checkpoint is saved: at the end of an epoch, every ten
    minutes, and on a request to stop."""

    def __init__(self, reporter: Reporter, best: BestEpoch) -> None:
        self._reporter, self._best, self._stopping = reporter, best, False
        self._saved = self._began = time.monotonic()
        self._tokens_before = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        self._saved = self._began = time.monotonic()
        self._tokens_before = state.num_input_tokens_seen
        self._reporter.progress(
            always=True, stage="training", step=state.global_step, steps=state.max_steps
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        due = self._agree(args, time.monotonic() - self._saved > _SECONDS_BETWEEN_CHECKPOINTS)
        # A checkpoint at the epoch's last step would lack its evaluation: the end of the epoch
        # comes at once, and saves.
        if not _ends_epoch(state):
            control.should_save |= due or self._stopping
            control.should_training_stop |= self._stopping

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        entry = state.log_history[-1]
        if "loss" not in entry:
            return
        seconds = max(time.monotonic() - self._began, 1e-3)
        self._reporter.progress(
            stage="training",
            step=state.global_step,
            steps=state.max_steps,
            epoch=round(state.epoch, 3),
            loss=entry["loss"],
            learning_rate=entry["learning_rate"],
            tokens_per_second=round(
                (state.num_input_tokens_seen - self._tokens_before) / seconds, 1
            ),
            memory_mb=memory_mb(),
        )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._agree(args)
        if not _ends_epoch(state):
            # Stopped within an epoch: its evaluation would be of half an epoch, and takes time
            # that a request to stop does not leave.
            control.should_evaluate = False
        elif state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop |= self._stopping

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        found = {f"eval_{name}": metrics[f"eval_{name}"] for name in self._best.names}
        self._reporter.progress(
            always=True,
            stage="training",
            step=state.global_step,
            steps=state.max_steps,
            epoch=round(state.epoch, 3),
            best_epoch=self._best.epoch,
            memory_mb=memory_mb(),
            **found,
        )

    def _agree(self, args: TrainingArguments, due: bool = False) -> bool:
        """All processes stop together, or none. The same for a checkpoint being due."""
        # What was agreed is kept apart: a request that comes now is not known to the others.
        due, self._stopping = distributed.any_process([due, self._reporter.stopping], args.device)
        return due

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._saved = time.monotonic()
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._reporter.progress(
            always=True, stage="training", step=state.global_step, checkpoint=str(checkpoint)
        )


def checkpoint(folder: Path | None) -> Path | None:
    """The checkpoint to resume from; None if there is none or it is incomplete."""
    return folder if folder and (folder / _COMPLETE).is_file() else None


def memory_mb() -> float:
    """The most memory that was in use so far: of the GPU, or of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def diverged(found: str) -> TrainingDiverged:
    """The error of a loss that is no number.

    Args:
        found: Which, and where.
    """
    return TrainingDiverged(
        "training.learning_rate",
        found,
        "a finite loss",
        "lower the learning rate (a tenth is a good try), or train in fp32",
    )


def _ends_epoch(state: TrainerState) -> bool:
    return math.isclose(state.epoch, round(state.epoch), abs_tol=1e-9)
