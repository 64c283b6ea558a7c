"""Trains an adapter and a classification head, and writes the files that ship.

Job:
    base, tokenizer: folders; `base_pin`: the base's `uri` and `digest`.
    shards: a list of `digest` and `tokens` (a Parquet file); keep: split numbers by shard digest.
    labels: in the order of their ids; head_modules: from inspect_model.
    lora, training: recipe parts; plan: `Plan`; quantization: none or nf4; ship: merged or adapter.
    out: folder for what ships; work: folder for checkpoints and scratch.
    resume_from: a checkpoint folder that a progress line named, or null.
    micro_batch (optional): examples at once; the batch size of an optimizer step stays the same.

Result: `metrics`, `history`, `best_epoch`, `steps`, `trained_parameters`.

The same job gives the same bytes on the same kind of machine, interrupted or not. Progress lines
with `checkpoint` name a complete checkpoint; on disk (`work`/checkpoints/checkpoint-STEP) it is one
that holds the file `complete`.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

# Read by cuBLAS when it starts: without it, deterministic mode refuses to multiply.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from tasks.errors import BadRecipe, TrainingDiverged
from tasks.programs import model as models
from tasks.programs.examples import ByLength, Examples, InOrder, PadBatch, gather
from tasks.programs.metrics import ClassificationMetrics
from tasks.programs.protocol import Reporter, preempted, run

_SECONDS_BETWEEN_CHECKPOINTS = 600.0
_POINTS_IN_HISTORY = 200
_COMPLETE = "complete"
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
_KEPT_IN_HISTORY = ("step", "epoch", "loss", "learning_rate", "grad_norm")
_METRICS = ("loss", "accuracy", "precision", "recall", "f1")


def main(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """See the module's description.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
        Preempted: The program was asked to stop; a checkpoint was saved.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work, plan = Path(job["work"]), job["plan"]
    work.mkdir(parents=True, exist_ok=True)
    _prepare(plan, job["training"]["seed"])
    reporter.progress(always=True, stage="reading data")
    train, validation = (
        gather(job["shards"], Path(job["keep"]), job["labels"], split, work / f"{split}.arrow")
        for split in ("train", "validation")
    )
    reporter.progress(
        always=True, stage="loading model", train=len(train), validation=len(validation)
    )
    best, state, trained = _train(job, train, validation, reporter)
    reporter.progress(always=True, stage="writing model")
    ship(job, best.adapter)
    return {
        "metrics": {name: best.metrics[name] for name in _METRICS},
        "history": _history(state),
        "best_epoch": best.epoch,
        "steps": state.global_step,
        "trained_parameters": trained,
    }


def ship(job: dict[str, Any], adapter: Path) -> None:
    """Write the model that is published.

    Args:
        job: The program's job.
        adapter: The trained tensors of the best epoch.
    """
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = models.load_tokenizer(Path(job["tokenizer"]))
    model = _load(job, merging=job["ship"] == "merged")
    if job["ship"] == "merged":
        models.load_adapter(model, adapter)
        models.save_merged(models.merge(model, models.stored_dtype(Path(job["base"]))), out)
    else:
        models.save_shipped_adapter(model, adapter, out, job["base_pin"], job["quantization"])
    models.save_tokenizer(tokenizer, out, job["training"]["max_length"])


def _prepare(plan: dict[str, Any], seed: int) -> None:
    if plan["device"] == "cuda" and not torch.cuda.is_available():
        raise BadRecipe(
            "plan.device",
            "cuda, on a worker without a usable GPU",
            "a CUDA device",
            "send the training to a worker pool with GPUs, or name no pool",
        )
    # Before anything random is made: an adapter drawn from an unseeded state differs every time.
    set_seed(seed)
    # A few CUDA kernels have no deterministic form: there a warning has to do.
    torch.use_deterministic_algorithms(True, warn_only=plan["device"] == "cuda")
    torch.backends.cudnn.benchmark = False
    # Deterministic mode also fills new memory with NaN, to show who reads it unwritten: for
    # debugging, and a quarter of a step on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False


def _load(job: dict[str, Any], merging: bool = False) -> Any:
    """Base and new adapter: as it trains, or on the dequantised base, to be merged.

    An adapter that was trained on a quantised base belongs to that base's rounded weights: merged
    into the original ones it is another model.
    """
    plan, seed = job["plan"], job["training"]["seed"]
    base, found = models.load_classifier(
        Path(job["base"]),
        job["labels"],
        seed=seed,
        dtype=models.DTYPES[plan["precision"]],
        quantization=job["quantization"],
        head_modules=job["head_modules"],
        device=plan["device"],
        attention=plan["attention"],
    )
    if merging and job["quantization"] == "nf4":
        base = base.dequantize(dtype=torch.float32)
    tokenizer = models.load_tokenizer(Path(job["tokenizer"]))
    base.config.pad_token_id = tokenizer.pad_token_id
    return models.attach_lora(base, job["lora"], {*found, *job["head_modules"]}, seed)


def _train(
    job: dict[str, Any], train: Examples, validation: Examples, reporter: Reporter
) -> tuple[Best, TrainerState, int]:
    # Model and optimizer end with this function: shipping loads the base once more.
    work, training = Path(job["work"]), job["training"]
    resume = _checkpoint(job.get("resume_from"))
    best = Best(work / "best", training["best_by"], training["early_stopping"], resume)
    model = _load(job)
    reporter.check_stop()
    trainer = ClassifierTrainer(
        model=model,
        args=_arguments(job, len(train)),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=PadBatch(models.load_tokenizer(Path(job["tokenizer"]))),
        compute_metrics=_compute_metrics(work / "evaluate"),
        preprocess_logits_for_metrics=_predicted,
        callbacks=[best, Watch(reporter, best)],
    )
    trainer.remove_callback(PrinterCallback)
    # Else the Trainer leaves it to the model to divide the loss by the number of micro-batches,
    # which classification models do not do.
    trainer.model_accepts_loss_kwargs = False
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    state = trainer.state
    if reporter.stopping and not best.ended and state.global_step < state.max_steps:
        raise preempted(f"a checkpoint of step {state.global_step} was saved")
    return best, state, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _arguments(job: dict[str, Any], examples: int) -> TrainingArguments:
    training, plan = job["training"], job["plan"]
    share = training["batch_size"] // plan["world_size"] or 1
    most = min(job.get("micro_batch") or share, share)
    # A divisor: the batch of an optimizer step stays what the recipe says.
    micro = next(size for size in range(most, 0, -1) if share % size == 0)
    steps = math.ceil(examples / training["batch_size"]) * training["epochs"]
    return TrainingArguments(
        output_dir=str(Path(job["work"]) / "checkpoints"),
        num_train_epochs=training["epochs"],
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=max(32, micro),
        gradient_accumulation_steps=share // micro,
        learning_rate=training["learning_rate"],
        lr_scheduler_type=_SCHEDULES[training["schedule"]],
        warmup_steps=math.ceil(training["warmup"] * steps),
        weight_decay=training["weight_decay"],
        optim=plan["optimizer"],
        bf16=plan["precision"] == "bf16",
        use_cpu=plan["device"] == "cpu",
        seed=training["seed"],
        eval_strategy="epoch",
        # Checkpoints are saved by `Watch`, which knows when one is worth its time.
        save_strategy="no",
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=max(1, steps // _POINTS_IN_HISTORY),
        # Else a NaN is replaced by the mean of the other losses, and nobody sees it.
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        dataloader_pin_memory=plan["device"] == "cuda",
        disable_tqdm=True,
        report_to=[],
    )


class ClassifierTrainer(Trainer):
    """A Trainer whose batches follow from the seed, and that stops at the first bad loss.

    Attributes:
        last_loss: Of the latest step.
    """

    last_loss = math.nan

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        size = self._train_batch_size * self.args.gradient_accumulation_steps
        return ByLength(self.train_dataset.lengths, size, self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> InOrder:
        return InOrder(eval_dataset.lengths)

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            TrainingDiverged: The loss is not finite.
        """
        loss = super().training_step(*args, **options)
        self.last_loss = float(loss) * self.current_gradient_accumulation_steps
        if not math.isfinite(self.last_loss):
            raise _diverged(f"loss {self.last_loss} at step {self.state.global_step + 1}")
        return loss


class Best(TrainerCallback):
    """Keeps the weights of the best epoch, also across interruptions, and stops early.

    The Trainer's own way remembers a path, which is void on another machine. Here the weights
    travel inside each checkpoint.

    Args:
        folder: Where they are kept.
        metric: What is compared; of equal epochs the first is kept.
        patience: Epochs without a better one after which training stops; 0 for never.
        resume: A checkpoint to take the best so far from.
    """

    def __init__(self, folder: Path, metric: str, patience: int, resume: Path | None) -> None:
        self._folder, self._metric, self._patience = folder, metric, patience
        self.epoch, self.worse, self.ended = 0.0, 0, False
        self.metrics: dict[str, float] = {}
        shutil.rmtree(folder, ignore_errors=True)
        if resume and (resume / "best" / "best.json").is_file():
            shutil.copytree(resume / "best", folder)
            facts = json.loads((folder / "best.json").read_text())
            self.epoch, self.worse, self.metrics = (
                facts[name] for name in ("epoch", "worse", "metrics")
            )
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
        found = {name: metrics[f"eval_{name}"] for name in _METRICS}
        if not math.isfinite(found["loss"]):
            raise _diverged(f"validation loss {found['loss']} after step {state.global_step}")
        if self._better(found):
            self.metrics, self.epoch, self.worse = found, round(state.epoch, 4), 0
            models.save_adapter(model, self.adapter)
        else:
            self.worse += 1
            if self._patience and self.worse >= self._patience:
                self.ended = control.should_training_stop = True
        facts = {"epoch": self.epoch, "worse": self.worse, "metrics": self.metrics}
        (self._folder / "best.json").write_text(json.dumps(facts, sort_keys=True))

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Put the best so far into the checkpoint."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        shutil.copytree(self._folder, checkpoint / "best", dirs_exist_ok=True)
        # The last file that is written: a checkpoint without it is half a checkpoint.
        (checkpoint / _COMPLETE).touch()

    def _better(self, found: dict[str, float]) -> bool:
        if not self.metrics:
            return True
        gain = found[self._metric] - self.metrics[self._metric]
        return gain < 0 if self._metric == "loss" else gain > 0


class Watch(TrainerCallback):
    """Reports progress, and decides when a checkpoint is saved: at the end of an epoch, every ten
    minutes, and on a request to stop."""

    def __init__(self, reporter: Reporter, best: Best) -> None:
        self._reporter, self._best = reporter, best
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
        due = time.monotonic() - self._saved > _SECONDS_BETWEEN_CHECKPOINTS
        # A checkpoint at the epoch's last step would lack its evaluation: the end of the epoch
        # comes at once, and saves.
        if not _ends_epoch(state):
            control.should_save |= due or self._reporter.stopping
            control.should_training_stop |= self._reporter.stopping

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
            memory_mb=_memory_mb(),
        )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not _ends_epoch(state):
            # Stopped within an epoch: its evaluation would be of half an epoch, and takes time
            # that a request to stop does not leave.
            control.should_evaluate = False
        elif state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop |= self._reporter.stopping

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        found = {f"eval_{name}": metrics[f"eval_{name}"] for name in _METRICS}
        self._reporter.progress(
            always=True,
            stage="training",
            step=state.global_step,
            steps=state.max_steps,
            epoch=round(state.epoch, 3),
            best_epoch=self._best.epoch,
            memory_mb=_memory_mb(),
            **found,
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._saved = time.monotonic()
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._reporter.progress(
            always=True, stage="training", step=state.global_step, checkpoint=str(checkpoint)
        )


def _ends_epoch(state: TrainerState) -> bool:
    return math.isclose(state.epoch, round(state.epoch), abs_tol=1e-9)


def _checkpoint(folder: str | None) -> Path | None:
    """The checkpoint to go on from, if there is one and it is whole."""
    return Path(folder) if folder and (Path(folder) / _COMPLETE).is_file() else None


def _compute_metrics(scratch: Path) -> Any:
    metrics = ClassificationMetrics(scratch)
    return lambda found: metrics(found.predictions, found.label_ids)


def _predicted(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    # Only the class is needed: logits of all examples would pile up in memory.
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def _history(state: TrainerState) -> list[dict[str, float]]:
    evaluated = tuple(f"eval_{name}" for name in _METRICS)
    wanted = (*_KEPT_IN_HISTORY, *evaluated)
    entries = [
        {name: float(entry[name]) for name in wanted if name in entry}
        for entry in state.log_history
    ]
    return [entry for entry in entries if "loss" in entry or "eval_loss" in entry]


def _memory_mb() -> float:
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _diverged(found: str) -> TrainingDiverged:
    return TrainingDiverged(
        "training.learning_rate",
        found,
        "a finite loss",
        "lower the learning rate (a tenth is a good try), or train in fp32",
    )


if __name__ == "__main__":
    run(main, graceful=True)
