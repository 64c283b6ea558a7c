"""What a run has made on its way to a release."""

from __future__ import annotations

from tasks.contracts.artifact import (
    Finetuned,
    Inspected,
    Loaded,
    Plan,
    Scored,
    Source,
    Tokenized,
)
from tasks.contracts.base import Contract
from tasks.contracts.recipe import Recipe, Task
from tasks.contracts.verdict import Judged


class GuardSet(Contract):
    """Texts that must not be forgotten, ready to be scored.

    Attributes:
        loaded: Its rows, all of them test examples.
        task: What they were read for: completion or instruction.
    """

    loaded: Loaded
    task: Task


class Trained(Contract):
    """What the first half of a run has made: from the sources to a trained model."""

    recipe: Recipe
    data: Source
    model: Source
    plan: Plan
    loaded: Loaded
    inspected: Inspected
    tokenized: Tokenized
    finetuned: Finetuned
    guard: GuardSet | None = None


class Candidate(Trained):
    """A trained model with its scores, the baseline's, and the verdict."""

    scored: Scored
    baseline: Scored | None
    judged: Judged
