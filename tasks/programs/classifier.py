"""What is particular to training classifiers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from tasks.programs import model as models
from tasks.programs.examples import ByLength, Examples, InOrder, PadBatch, gather
from tasks.programs.loop import CLASSIFICATION, arguments, diverged
from tasks.programs.metrics import ClassificationMetrics


class Classification:
    """The task `text-classification`: see `tasks.programs.train.Task`.

    Args:
        job: The program's job.
    """

    names = CLASSIFICATION

    def __init__(self, job: dict[str, Any]) -> None:
        self.warnings: list[str] = []
        self._job = job

    def examples(self, split: str, file: Path) -> Examples:
        """The examples of a split, in a file that is made for them."""
        job = self._job
        return gather(job["shards"], Path(job["keep"]), job["labels"], split, file)

    def model(self, merging: bool = False) -> Any:
        """Base and new adapter: as it trains, or on the dequantised base, to be merged.

        An adapter that was trained on a quantised base belongs to that base's rounded weights:
        merged into the original ones it is another model.
        """
        job = self._job
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
        base.config.pad_token_id = self._tokenizer().pad_token_id
        return models.attach_lora(base, job["lora"], {*found, *job["head_modules"]}, seed)

    def trainer(
        self, model: Any, train: Examples, validation: Examples, callbacks: list[TrainerCallback]
    ) -> Trainer:
        """What trains the model."""
        trainer = ClassifierTrainer(
            model=model,
            args=self._arguments(len(train)),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=PadBatch(self._tokenizer()),
            compute_metrics=_compute_metrics(Path(self._job["work"]) / "evaluate"),
            preprocess_logits_for_metrics=_predicted,
            callbacks=callbacks,
        )
        # Else the Trainer leaves it to the model to divide the loss by the number of
        # micro-batches, which classification models do not do.
        trainer.model_accepts_loss_kwargs = False
        return trainer

    def merge(self, model: Any) -> Any:
        """Adapter and base as one model, in the number format of the base's files."""
        return models.merge(model, models.stored_dtype(Path(self._job["base"])))

    def finish(self, model: Any, out: Path) -> None:
        """Write what ships beside the weights."""
        models.save_tokenizer(self._tokenizer(), out, self._job["training"]["max_length"])

    def _tokenizer(self) -> Any:
        return models.load_tokenizer(Path(self._job["tokenizer"]))

    def _arguments(self, examples: int) -> Any:
        job = self._job
        share = job["training"]["batch_size"] // job["plan"]["world_size"] or 1
        most = min(job.get("micro_batch") or share, share)
        # A divisor: the batch of an optimizer step stays what the recipe says.
        micro = next(size for size in range(most, 0, -1) if share % size == 0)
        return arguments(
            job,
            examples,
            per_device_train_batch_size=micro,
            per_device_eval_batch_size=max(32, micro),
            gradient_accumulation_steps=share // micro,
            include_num_input_tokens_seen="non_padding",
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
            raise diverged(f"loss {self.last_loss} at step {self.state.global_step + 1}")
        return loss


def _compute_metrics(scratch: Path) -> Any:
    metrics = ClassificationMetrics(scratch)
    return lambda found: metrics(found.predictions, found.label_ids)


def _predicted(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    # Only the class is needed: logits of all examples would pile up in memory.
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)
