"""What a release is made of."""

from __future__ import annotations

from typing import Any

from tasks.contracts.approval import Answer
from tasks.contracts.base import Contract
from tasks.contracts.candidate import Candidate
from tasks.contracts.recipe_data import DataRecipe, Task
from tasks.contracts.recipe_release import PublishRecipe
from tasks.contracts.recipe_training import LoraRecipe, ModelRecipe, TrainingRecipe


class ReleaseInputs(Contract):
    """A promoted candidate, where it is published, and what its card and provenance say.

    Attributes:
        name, channel: Of the release.
        publish: The targets.
        candidate: What the run produced.
        log_number: Number of the log's newest entry when the baseline was read; 0 for an empty log.
        recipe: The whole recipe as plain JSON values, for the provenance.
        recipe_digest: Its digest.
        task, data, base, lora, quantization, training: Parts of the recipe, for the card.
        approval: A person's word; None if none was asked for.
    """

    name: str
    channel: str
    publish: PublishRecipe
    candidate: Candidate
    log_number: int
    recipe: dict[str, Any]
    recipe_digest: str
    task: Task
    data: DataRecipe
    base: ModelRecipe
    lora: LoraRecipe
    quantization: str
    training: TrainingRecipe
    approval: Answer | None = None
