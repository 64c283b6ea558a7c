"""What a run has produced so far, on its way to a release."""

from __future__ import annotations

from tasks.contracts.artifacts import Source
from tasks.contracts.base import Contract
from tasks.contracts.forecast import Forecast
from tasks.contracts.machine import Machine
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_data import Task
from tasks.contracts.results import (
    Benchmarked,
    Comparisons,
    ConvertedGguf,
    Finetuned,
    GgufExported,
    Inspected,
    Loaded,
    Scored,
    Tokenized,
)
from tasks.contracts.verdict import GateResult


class GuardSet(Contract):
    """Texts that the model must not forget, loaded and ready to score.

    Attributes:
        loaded: Its rows, all of them test examples.
        task: The task that they were read for: completion or instruction.
        source: Their source.
    """

    loaded: Loaded
    task: Task
    source: Source


class Prepared(Contract):
    """Everything that training starts from. None of it needs a GPU.

    Attributes:
        data: The data's source, resolved.
        model: The base model as it is trained on: for a GGUF file, what it was converted to.
        guard: The guard set; None if the recipe names none.
        converted: The conversion; None if the base model is no GGUF file.
        machine: That trains and scores.
    """

    machine: Machine
    data: Source
    model: Source
    loaded: Loaded
    inspected: Inspected
    tokenized: Tokenized
    guard: GuardSet | None = None
    converted: ConvertedGguf | None = None


class Planned(Prepared):
    """Everything that decides how a model is trained.

    Attributes:
        forecast: The memory forecast; None for a classifier.
    """

    plan: Plan
    forecast: Forecast | None = None


class Trained(Planned):
    """The result of the first half of a run: a trained model.

    Attributes:
        gguf_exported: The model as GGUF; None if the recipe asks for none.
    """

    finetuned: Finetuned
    gguf_exported: GgufExported | None = None


class Candidate(Trained):
    """A trained model with its scores, the baseline's, and the verdict.

    Attributes:
        guard_scored, guard_baseline: Both models' scores on the guard set.
        compared: The LLM judge's comparison of their answers.
        benchmarks, benchmark_baseline: Both models' benchmark results.
        benchmark_folder: Source of the user's own benchmark tasks.
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
