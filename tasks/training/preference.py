"""Train on preferences (DPO, arXiv:2305.18290).

The reference model is the base without its adapter, so it needs no memory of its own. Its
log-likelihoods never change, so they are computed once, before training.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from tasks.training.language import Language, LanguageTrainer
from tasks.training.language_batches import Batch, Example, TokenExamples
from tasks.training.loss_check import target_sums
from tasks.training.losses import preference_loss


class Preference(Language):
    """The task `preference`: see `tasks.finetune.program.Task`."""

    names = ("loss", "accuracy", "margin")
    pairs = True

    def trainer(
        self,
        model: Any,
        train: TokenExamples,
        validation: TokenExamples,
        callbacks: list[TrainerCallback],
    ) -> PreferenceTrainer:
        """The Trainer for a model, with the reference log-likelihoods."""
        trainer = super().trainer(model, train, validation, callbacks)
        trainer.beta = self._job.training.beta
        with model.disable_adapter():
            trainer.train_reference, trainer.validation_reference = map(
                trainer.log_likelihoods_of, (train, validation)
            )
        return trainer

    def _trainer_class(self) -> type[LanguageTrainer]:
        return PreferenceTrainer


class PreferenceTrainer(LanguageTrainer):
    """A `LanguageTrainer` whose examples are pairs of answers.

    Attributes:
        beta: Strength of the pull towards the reference model.
        train_reference, validation_reference: float32 (examples, 2): the reference model's
            log-likelihoods of the chosen and the rejected answers.
    """

    beta: float
    train_reference: torch.Tensor
    validation_reference: torch.Tensor

    @torch.no_grad()
    def log_likelihoods_of(self, data: TokenExamples) -> torch.Tensor:
        """Log-likelihoods of a split's answers under the current model.

        Returns:
            In nats, float32 (examples, 2): chosen and rejected.
        """
        table = torch.zeros(len(data), 2, device=self.args.device)
        for batch in self.batches(data):
            nats = self.forward(self.model, batch).nats
            table[batch.numbers] = self._log_likelihoods(nats, batch)
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return self.accelerator.reduce(table, "sum")

    def _denominator(self, examples: list[Example]) -> int:
        return len(examples)

    def batch_loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        nats = self.forward(model, batch).nats
        return self._dpo_loss(nats, batch, self.train_reference)[0].sum()

    def _sums(self, batch: Batch) -> torch.Tensor:
        nats = self.forward(self.model, batch).nats
        loss, margin = self._dpo_loss(nats, batch, self.validation_reference)
        count = margin.new_tensor(len(margin), dtype=torch.float64)
        sums = [loss.double().sum(), (margin > 0).double().sum(), margin.double().sum(), count]
        checked = target_sums(nats, batch.sequence_ids, batch.numbers, 2)
        return torch.cat([torch.stack(sums), checked])

    def _metrics(self, sums: list[float]) -> dict[str, float]:
        loss, right, margin, count = sums
        return {"loss": loss / count, "accuracy": right / count, "margin": margin / count}

    def _dpo_loss(
        self, nats: torch.Tensor, batch: Batch, reference: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own, theirs = self._log_likelihoods(nats, batch), reference[batch.numbers]
        return preference_loss(*own.unbind(1), *theirs.unbind(1), self.beta)

    def _log_likelihoods(self, nats: torch.Tensor, batch: Batch) -> torch.Tensor:
        sums = nats.new_zeros(2 * len(batch.numbers)).index_add(0, batch.sequence_ids, -nats)
        return sums.view(-1, 2)
