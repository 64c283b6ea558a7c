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
from tasks.contracts.recipe import Recipe
from tasks.contracts.verdict import Judged


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


class Candidate(Trained):
    """A trained model with its scores, the baseline's, and the verdict."""

    scored: Scored
    baseline: Scored | None
    judged: Judged
