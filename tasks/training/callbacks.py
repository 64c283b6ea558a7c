"""What the training of all tasks shares: the Trainer's settings, and the best epoch."""

from __future__ import annotations

import json
import math
import resource
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.contracts.errors import TrainingDiverged
from tasks.contracts.jobs import FinetuneJob
from tasks.models import adapter as adapter_
from tasks.runtime import ranks

CLASSIFICATION = ("loss", "accuracy", "precision", "recall", "f1")
"""The validation metrics of a classifier."""

POINTS_IN_HISTORY = 200
"""Log entries of a long training, at least."""
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
_LOWER = ("loss", "perplexity")


def training_arguments(job: FinetuneJob, examples: int, **changes: Any) -> TrainingArguments:
    """Settings of the Trainer that all tasks share.

    Args:
        job: The program's job.
        examples: Number of training examples.
        **changes: Settings of the task, which take precedence.
    """
    training, plan = job.training, job.plan
    steps = math.ceil(examples / training.batch_size) * training.epochs
    options: dict[str, Any] = {
        "output_dir": str(job.work / "checkpoints"),
        "num_train_epochs": training.epochs,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": _SCHEDULES[training.schedule],
        # Rounded down: the first warm-up step has a rate of 0, and may be the only step.
        "warmup_steps": math.floor(training.warmup * steps + 1e-9),
        "weight_decay": training.weight_decay,
        "optim": plan.optimizer,
        "bf16": plan.precision == "bf16",
        "use_cpu": plan.device == "cpu",
        "seed": training.seed,
        "eval_strategy": "epoch",
        # `checkpoints.Checkpoints` decides when to save one.
        "save_strategy": "no",
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": max(1, steps // POINTS_IN_HISTORY),
        # Otherwise a NaN is replaced by the mean of the other losses and goes unnoticed.
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

    The Trainer's own mechanism stores a path, which is void on another machine. Here the weights
    are part of each checkpoint. Several processes make the same decision, and the main process
    writes.

    Args:
        folder: Folder for the best weights.
        metric: The metric to compare; of equal epochs the first is kept.
        patience: Epochs without improvement after which training stops; 0 for never.
        resume: A checkpoint from which to restore the best epoch so far.
        names: The metrics to record for each epoch.
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
        self.check_loss = 0.0
        self._first = ranks.rank() == 0
        before = resume / "best" if resume else None
        if before and (before / "best.json").is_file():
            facts = json.loads((before / "best.json").read_text())
            self.epoch, self.worse, self.metrics, self.check_loss = (
                facts[name] for name in ("epoch", "worse", "metrics", "check_loss")
            )
        if self._first:
            shutil.rmtree(folder, ignore_errors=True)
            if self.metrics:
                shutil.copytree(before, folder)
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def adapter(self) -> Path:
        """The file with the trained tensors of the best epoch."""
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
        """Compare this epoch with the best one so far."""
        found = {name: metrics[f"eval_{name}"] for name in self.names}
        if not math.isfinite(found["loss"]):
            raise diverged(f"validation loss {found['loss']} after step {state.global_step}")
        if self._better(found):
            self.metrics, self.epoch, self.worse = found, round(state.epoch, 4), 0
            self.check_loss = metrics["eval_check_loss"]
            if self._first:
                adapter_.save_adapter(model, self.adapter)
        else:
            self.worse += 1
            if self._patience and self.worse >= self._patience:
                self.ended = control.should_training_stop = True
        if self._first:
            facts = {
                "epoch": self.epoch,
                "worse": self.worse,
                "metrics": self.metrics,
                "check_loss": self.check_loss,
            }
            (self._folder / "best.json").write_text(json.dumps(facts, sort_keys=True))

    def copy_to(self, folder: Path) -> None:
        """Copy the best epoch so far into a checkpoint."""
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)

    def _better(self, found: dict[str, float]) -> bool:
        if not self.metrics:
            return True
        gain = found[self._metric] - self.metrics[self._metric]
        return gain < 0 if self._metric in _LOWER else gain > 0


def peak_memory() -> dict[str, float]:
    """Peak memory so far, in MB as the forecast counts them: `gpu_memory_mb`, of the tensors on the
    GPU, or `process_memory_mb`, of this process with the libraries that it has loaded."""
    if torch.cuda.is_available():
        return {"gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1)}
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_memory_mb": round(peak_kib * 1024 / 1e6, 1)}


def diverged(found: str) -> TrainingDiverged:
    """The error for a loss that is not finite.

    Args:
        found: The loss and its step.
    """
    return TrainingDiverged(
        "training.learning_rate",
        found,
        "a finite loss",
        "lower the learning rate (a tenth is a good try), or train in fp32",
    )
