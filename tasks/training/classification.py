"""Train classifiers: data, model, Trainer and merging for `text-classification`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from tasks.contracts.jobs import FinetuneJob
from tasks.models import adapter, classifier, distributed, weights
from tasks.models.merge import dequantize_to_host, merge, merge_device
from tasks.runtime import ranks
from tasks.training.callbacks import CLASSIFICATION, diverged, training_arguments
from tasks.training.classification_batches import (
    IGNORED_LABEL,
    Examples,
    LengthGroupedSampler,
    LongestFirstSampler,
    MicroBatches,
    PadCollator,
    gather,
)
from tasks.training.loss_check import CHECK_EXAMPLES, write_classifications
from tasks.training.validation_metrics import ClassificationMetrics


class Classification:
    """The task `text-classification`: see `tasks.finetune.program.Task`.

    Args:
        job: The program's job.
    """

    names = CLASSIFICATION

    def __init__(self, job: FinetuneJob) -> None:
        self.warnings: list[str] = []
        self._job = job

    def examples(self, split: str, file: Path) -> Examples:
        """The examples of a split, gathered into a file."""
        job = self._job

        def gathered(now: bool) -> Examples:
            if not now:
                return Examples(file)
            return gather(job.shards, job.keep_file, list(job.labels), split, file)

        return distributed.main_process_first(gathered)

    def model(self, merging: bool = False) -> Any:
        """The base with a new adapter.

        An adapter trained on a quantized base fits that base's rounded weights: merged into the
        original weights it gives another model.

        Args:
            merging: Whether to prepare for merging: the base is dequantized, in host memory.
        """
        job = self._job
        plan, seed = job.plan, job.training.seed
        dtype, device = weights.DTYPES[plan.precision], plan.device
        if merging:
            device = merge_device(device, job.quantization)
        base, found = classifier.load_classifier(
            job.base,
            list(job.labels),
            seed=seed,
            dtype=dtype,
            quantization=job.quantization,
            head_modules=job.head_modules,
            device=device,
            attention=plan.attention,
        )
        if merging:
            base = dequantize_to_host(base, dtype)
        base.config.pad_token_id = self._tokenizer().pad_token_id
        return adapter.attach_lora(base, job.lora, {*found, *job.head_modules}, seed)

    def trainer(
        self, model: Any, train: Examples, validation: Examples, callbacks: list[TrainerCallback]
    ) -> Trainer:
        """The Trainer for a model."""
        trainer = ClassifierTrainer(
            model=model,
            args=self._arguments(len(train)),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=PadCollator(self._tokenizer()),
            compute_loss_func=_loss,
            callbacks=callbacks,
        )
        # Otherwise the Trainer passes the number of examples to the model, which does not take it.
        trainer.model_accepts_loss_kwargs = False
        trainer.batch_size = self._job.training.batch_size
        trainer.validation_metrics = ClassificationMetrics(
            self._job.work / f"evaluate-{ranks.rank()}"
        )
        return trainer

    def merge(self, model: Any) -> Any:
        """Merge the adapter into its base, in the dtype of the base's files."""
        return merge(model, weights.stored_dtype(self._job.base))

    def write_check(self, validation: Examples, file: Path) -> None:
        """Write the examples of the loss check."""
        write_classifications(validation, file)

    def finish(self, model: Any, out: Path) -> None:
        """Write the files that ship with the weights."""
        classifier.save_tokenizer(self._tokenizer(), out, self._job.training.max_length)

    def _tokenizer(self) -> Any:
        return classifier.load_tokenizer(self._job.tokenizer)

    def _arguments(self, examples: int) -> Any:
        job = self._job
        share = -(-job.training.batch_size // ranks.count())
        most = max(1, min(job.micro_batch_examples or share, share) >> job.halvings)
        # A divisor of the share: the batch size of a step stays that of the recipe.
        micro = next(size for size in range(most, 0, -1) if share % size == 0)
        return training_arguments(
            job,
            examples,
            per_device_train_batch_size=micro,
            per_device_eval_batch_size=max(32, micro),
            gradient_accumulation_steps=share // micro,
            include_num_input_tokens_seen="non_padding",
        )


class ClassifierTrainer(Trainer):
    """A Trainer with batches that depend on the seed only; it stops at a loss that is not finite.

    Attributes:
        batch_size: Examples per step, over all processes.
        validation_metrics: Computes the validation metrics.
    """

    batch_size: int
    validation_metrics: ClassificationMetrics

    def get_train_dataloader(self) -> DataLoader:
        """The micro-batches of this process."""
        order = LengthGroupedSampler(self.train_dataset.lengths, self.batch_size, self.args.seed)
        share = MicroBatches(
            order,
            self.batch_size,
            self._train_batch_size,
            self.args.process_index,
            self.args.world_size,
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=share,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            TrainingDiverged: The loss is not finite.
        """
        loss = super().training_step(*args, **options)
        if not math.isfinite(value := float(loss)):
            raise diverged(f"loss {value} at step {self.state.global_step + 1}")
        return loss

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of the validation split; only the classes of each batch are kept in memory."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        # Prediction and label of each example, and the sum of losses.
        table = torch.zeros(2, len(data), dtype=torch.int64, device=self.args.device)
        # Sums of losses: of all examples, and of those that the release is checked on.
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model.eval()
        for numbers in self._share(data):
            batch = self.data_collator([data[number] for number in numbers])
            batch = self._prepare_inputs(batch)
            labels = batch.pop("labels")
            with self.compute_loss_context_manager():
                logits = self.model(**batch).logits.float()
            table[:, numbers] = torch.stack([logits.argmax(dim=-1), labels])
            losses = F.cross_entropy(logits, labels, reduction="none").double()
            checked = torch.tensor(numbers, device=losses.device) < CHECK_EXAMPLES
            total += torch.stack([losses.sum(), losses[checked].sum()])
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        table, total = (self.accelerator.reduce(part, "sum") for part in (table, total))
        predicted, truth = table.cpu().numpy()
        metrics = self.validation_metrics.compute(predictions=predicted, references=truth)
        loss, check_loss = total.tolist()
        found = {
            "loss": loss / len(data),
            **metrics,
            "check_loss": check_loss / min(CHECK_EXAMPLES, len(data)),
        }
        found = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _share(self, data: Examples) -> Iterator[list[int]]:
        order, size = np.array(list(LongestFirstSampler(data.lengths))), self.args.eval_batch_size
        parts = np.split(order, range(size, len(order), size))
        for part in parts[self.args.process_index :: self.args.world_size]:
            yield part.tolist()


def _loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """The contribution of a micro-batch to the mean loss of its step."""
    count = (labels != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
    losses = F.cross_entropy(
        outputs.logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return losses / count
