"""What a run has made on its way to a release."""

from __future__ import annotations

from tasks.contracts.artifacts import Source
from tasks.contracts.base import Contract
from tasks.contracts.plan import Plan
from tasks.contracts.recipe import Recipe
from tasks.contracts.recipe_data import Task
from tasks.contracts.results import (
    Benchmarked,
    Comparisons,
    ConvertedGguf,
    Finetuned,
    Inspected,
    Loaded,
    Scored,
    Tokenized,
)
from tasks.contracts.verdict import GateResult


class GuardSet(Contract):
    """Texts that must not be forgotten, ready to be scored.

    Attributes:
        loaded: Its rows, all of them test examples.
        task: What they were read for: completion or instruction.
        source: Where they come from.
    """

    loaded: Loaded
    task: Task
    source: Source


class Trained(Contract):
    """What the first half of a run has made: from the sources to a trained model.

    Attributes:
        model: The base model, as it was trained on: of a GGUF file, what was unpacked of it.
        converted: That it was; None where it need not be.
    """

    recipe: Recipe
    data: Source
    model: Source
    plan: Plan
    loaded: Loaded
    inspected: Inspected
    tokenized: Tokenized
    finetuned: Finetuned
    guard: GuardSet | None = None
    converted: ConvertedGguf | None = None


class Candidate(Trained):
    """A trained model with its scores, the baseline's, and the verdict.

    Attributes:
        guard_scored, guard_baseline: Both models' scores on the guard set.
        compared: What the recipe's judge said of their answers.
        benchmarks, benchmark_baseline: What the harness said of each.
        benchmark_folder: Where its task files came from.
    """

    scored: Scored
    baseline: Scored | None
    gate_result: GateResult
    guard_scored: Scored | None = None
    guard_baseline: Scored | None = None
    compared: Comparisons | None = None
    benchmarks: Benchmarked | None = None
    benchmark_baseline: Benchmarked | None = None
    benchmark_folder: Source | None = None
