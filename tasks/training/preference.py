"""What is particular to training on preferences (DPO, arXiv:2305.18290).

The reference model is the base without its adapter, so it needs no memory of its own. What it
says of each answer never changes, so it is asked once, before training.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from tasks.training.language import Language, LanguageTrainer
from tasks.training.language_batches import Batch, Example, TokenExamples
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
        """What trains the model."""
        trainer = super().trainer(model, train, validation, callbacks)
        trainer.beta = self._job.training.beta
        with model.disable_adapter():
            trainer.of_train, trainer.of_validation = map(
                trainer.likelihoods_of, (train, validation)
            )
        return trainer

    def _trainer_class(self) -> type[LanguageTrainer]:
        return PreferenceTrainer


class PreferenceTrainer(LanguageTrainer):
    """A `LanguageTrainer` whose examples are pairs of answers.

    Attributes:
        beta: How strongly the model is held to the reference.
        of_train, of_validation: float32 (examples, 2): the reference's log-likelihoods of the
            chosen and the rejected answers.
    """

    beta: float
    of_train: torch.Tensor
    of_validation: torch.Tensor

    @torch.no_grad()
    def likelihoods_of(self, data: TokenExamples) -> torch.Tensor:
        """Log-likelihoods of a split's answers, in nats, under the model as it is: float32
        (examples, 2)."""
        table = torch.zeros(len(data), 2, device=self.args.device)
        for batch in self.batches(data):
            table[batch.numbers] = self._likelihoods(self.model, batch)
        return self.accelerator.reduce(table, "sum")

    def _weight(self, examples: list[Example]) -> int:
        return len(examples)

    def _loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return self._compare(model, batch, self.of_train)[0].sum()

    def _sums(self, batch: Batch) -> torch.Tensor:
        loss, margin = self._compare(self.model, batch, self.of_validation)
        sums = [loss.double().sum(), (margin > 0).double().sum(), margin.double().sum()]
        return torch.stack([*sums, margin.new_tensor(len(margin), dtype=torch.float64)])

    def _metrics(self, sums: list[float]) -> dict[str, float]:
        loss, right, margin, count = sums
        return {"loss": loss / count, "accuracy": right / count, "margin": margin / count}

    def _compare(
        self, model: torch.nn.Module, batch: Batch, reference: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own, theirs = self._likelihoods(model, batch), reference[batch.numbers]
        return preference_loss(*own.unbind(1), *theirs.unbind(1), self.beta)

    def _likelihoods(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        nats = self.forward(model, batch).nats
        sums = nats.new_zeros(2 * len(batch.numbers)).index_add(0, batch.sequence_ids, -nats)
        return sums.view(-1, 2)
