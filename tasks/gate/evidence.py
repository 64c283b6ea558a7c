"""What two models answered: the tables, whether they can be judged, and their rows side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa

from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.evaluate.score_table import is_text, keys_of, sorted_rows
from tasks.gate import phrasing
from tasks.gate.exact_tests import Interval

NO_BASELINE = "none"
UNTRAINED = "untrained base"
NUMBERS: dict[str, Any] = {
    "hash_hi": pa.types.is_uint64,
    "hash_lo": pa.types.is_uint64,
    "correct": pa.types.is_boolean,
    "loss": pa.types.is_floating,
    "length": pa.types.is_integer,
    "tokens": pa.types.is_integer,
    "accuracy": pa.types.is_floating,
    "exact_match": pa.types.is_floating,
    "token_f1": pa.types.is_floating,
    "rouge_l": pa.types.is_floating,
    "checks": pa.types.is_floating,
    "preferred": pa.types.is_floating,
}
"""Columns that are no strings, and what tells their type."""


@dataclass(frozen=True)
class Evidence:
    """What is known of the two models.

    Attributes:
        candidate: Its answers, with the columns that `contracts.artifact.Scored` lists.
        baseline: The baseline's answers on the same examples; None where there is no baseline. Its
            `loss` counts only on examples whose label it knows.
        candidate_labels: The labels that the candidate can answer; empty for language models.
        baseline_labels: The labels that the baseline can answer; None where there is no baseline.
        candidate_seen: Hashes of the inputs it was trained and validated on, uint64, shape (n, 2),
            pairs (hash_hi, hash_lo); None where that is unknown.
        baseline_seen: The same for the baseline.
        latency_ms: The candidate's milliseconds per example (per token, where it writes answers);
            None where it was not measured.
        size_bytes: Size of the candidate's files.
        task: What the models are for.
    """

    candidate: pa.Table
    baseline: pa.Table | None
    candidate_labels: tuple[str, ...]
    baseline_labels: tuple[str, ...] | None
    candidate_seen: np.ndarray | None
    baseline_seen: np.ndarray | None
    latency_ms: float | None
    size_bytes: int
    task: Task = "text-classification"


@dataclass(frozen=True)
class MetricWords:
    """How sentences speak of a metric.

    Attributes:
        name: Its name.
        unit: Behind its values.
        lower: Whether less is better.
        relative: Whether differences are shares of the baseline's value.
    """

    name: str
    unit: str = ""
    lower: bool = False
    relative: bool = False

    @property
    def title(self) -> str:
        """Its name at the beginning of a sentence."""
        return f"{self.name[0].upper()}{self.name[1:]}"

    @property
    def gain(self) -> str:
        """What it is called when it gets better."""
        return "fall" if self.lower else "gain"

    @property
    def loss(self) -> str:
        """What it is called when it gets worse."""
        return "rise" if self.lower else "loss"

    def difference(self, value: float) -> str:
        """A difference, with its sign."""
        return f"{phrasing.signed(100 * value)}%" if self.relative else phrasing.signed(value)

    def distance(self, value: float) -> str:
        """A difference, without a sign."""
        return f"{phrasing.number(100 * value)}%" if self.relative else phrasing.number(value)

    def margin(self, value: float) -> str:
        """A margin, as the recipe says it."""
        return f"{100 * value:g}%" if self.relative else f"{value:g}{self.unit}"


@dataclass(frozen=True)
class Compared:
    """Two models by one metric, on the same examples.

    Attributes:
        candidate, baseline, difference, interval: As `RuleOutcome` has them.
        p_value: One-sided, of what was asked.
        detectable: What would have shown with 80% probability; None where nothing would.
        discordant: (gained, lost), where answers are right or wrong.
    """

    candidate: float
    baseline: float
    difference: float
    interval: Interval
    p_value: float
    detectable: float | None
    discordant: tuple[int, int] | None = None


@dataclass(frozen=True)
class Answers(ABC):
    """Both models' answers, row by row, in the order of the examples' hashes. What follows are
    arrays of one length; where there is no baseline, its answers equal the candidate's.

    Attributes:
        seen: Whether a model had seen the example in training.
        slicing: The values of each slicing column.
    """

    seen: np.ndarray
    slicing: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.seen)

    def where(self, rows: np.ndarray) -> Self:
        """Those rows alone."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: _where(part, rows) for name, part in parts.items()})

    def measured(self, metric: str) -> Self:
        """The rows on which a metric was measured: all, but for what a judge was asked about."""
        return self

    @abstractmethod
    def words(self, metric: str) -> MetricWords:
        """How to speak of a metric."""

    @abstractmethod
    def slice_metric(self, rules: GateRecipe) -> str:
        """The metric that slices are compared by."""

    @abstractmethod
    def compare(self, rules: GateRecipe, margin: float) -> Compared:
        """Test the claim by the recipe's metric; a margin of 0 means "better"."""

    @abstractmethod
    def harm(self, rows: np.ndarray, rules: GateRecipe, family: int) -> Compared:
        """Test whether the candidate is worse on some rows, which are one slice of a family."""

    @abstractmethod
    def value(self, metric: str, confidence: float) -> tuple[float, Interval]:
        """The candidate's value and its interval."""


class Judgeable(ABC):
    """Tables of one task: what they must hold, and how they are laid side by side.

    Attributes:
        latency_unit: Of the latency, for sentences.
    """

    latency_unit = "ms per example"

    @abstractmethod
    def columns(self, rules: GateRecipe) -> tuple[str, ...]:
        """The columns that each table must have, but for those to slice by."""

    @abstractmethod
    def may_be_empty(self, column: str) -> bool:
        """Whether single values of it may be missing (and are asked for elsewhere)."""

    @abstractmethod
    def value_problems(
        self, model: str, table: pa.Table, evidence: Evidence, rules: GateRecipe
    ) -> Iterator[str]:
        """What is wrong with a well-formed table's values, in sentences."""

    @abstractmethod
    def contradictions(self, evidence: Evidence, rules: GateRecipe) -> Iterator[str]:
        """What is wrong with one table beside the other, or beside the rest of the evidence."""

    @abstractmethod
    def join(self, evidence: Evidence, slices: tuple[str, ...]) -> Answers:
        """Both models' answers side by side."""


def problems(
    kind: Judgeable,
    evidence: Evidence,
    rules: GateRecipe,
    slices: tuple[str, ...],
    baseline: str,
) -> list[str]:
    """Why the evidence cannot be judged, in sentences; empty where it can."""
    if (baseline == NO_BASELINE) != (evidence.baseline is None):
        return [_mismatched_baseline(baseline)]
    if evidence.baseline is None and not rules.floors:
        return ["There is no baseline and no floor, so nothing would be asked of the candidate."]
    classes = evidence.task == "text-classification"
    if classes and evidence.baseline is not None and not evidence.baseline_labels:
        return ["It is not known which labels the baseline can answer."]
    found = list(_table_problems(kind, "candidate", evidence.candidate, evidence, rules, slices))
    if evidence.baseline is not None:
        found += _table_problems(kind, "baseline", evidence.baseline, evidence, rules, ())
    for name, seen in (
        ("candidate", evidence.candidate_seen),
        ("baseline", evidence.baseline_seen),
    ):
        if seen is not None and (seen.dtype != np.uint64 or seen.ndim != 2 or seen.shape[1] != 2):
            found.append(f"The list of what the {name} has seen is not made of pairs of hashes.")
    return found or list(kind.contradictions(evidence, rules))


def seen_by_either(evidence: Evidence, keys: np.ndarray) -> np.ndarray:
    """For each key, whether a model had seen it in training; none is, where nothing is known."""
    return contains(evidence.candidate_seen, keys) | contains(evidence.baseline_seen, keys)


def unpaired(evidence: Evidence) -> Iterator[str]:
    """Examples that only one of the models answered, in sentences."""
    ours, theirs = sorted_rows(evidence.candidate), sorted_rows(evidence.baseline)
    if missing := int((~contains(keys_of(theirs), keys_of(ours))).sum()):
        yield f"The baseline has no answer to {phrasing.count(missing, 'test example')}."
    if missing := int((~contains(keys_of(ours), keys_of(theirs))).sum()):
        yield f"The candidate has no answer to {phrasing.count(missing, 'test example')}."


def what_is_known(evidence: Evidence, baseline: str) -> Literal["known", "unknown", "no baseline"]:
    """Whether it is known what the baseline was trained on."""
    if baseline == NO_BASELINE:
        return "no baseline"
    return "unknown" if evidence.baseline_seen is None else "known"


def contains(seen: np.ndarray | None, keys: np.ndarray) -> np.ndarray:
    """For each key, whether it is among those seen; none is, where nothing is known."""
    if seen is None:
        return np.zeros(len(keys), bool)
    # Training sets are large and few of their hashes share a first half with the test set's.
    near = set(map(tuple, seen[np.isin(seen[:, 0], keys[:, 0])].tolist()))
    return np.array([tuple(key) in near for key in keys.tolist()], bool)


def _mismatched_baseline(baseline: str) -> str:
    if baseline == NO_BASELINE:
        return "The verdict was asked for without a baseline, but there are answers of one."
    return f"The answers of the baseline ({baseline}) are missing."


def _table_problems(
    kind: Judgeable,
    model: str,
    table: pa.Table,
    evidence: Evidence,
    rules: GateRecipe,
    slices: tuple[str, ...],
) -> Iterator[str]:
    """What is wrong with one model's answers; the first problem hides those that follow from it.

    Args:
        kind: Of tables.
        model: `candidate` or `baseline`.
        table: Its answers.
        evidence, rules: All of it.
        slices: Columns that must be there, too.
    """
    columns = kind.columns(rules)
    wanted = dict.fromkeys((*columns, *slices))
    if missing := [name for name in wanted if table.column_names.count(name) != 1]:
        yield f"The {model}'s answers lack a column each for {phrasing.listed(missing)}."
    elif wrong := [name for name in wanted if not _fits(name, columns, table)]:
        yield f"The {model}'s answers have columns of the wrong type: {phrasing.listed(wrong)}."
    elif not table.num_rows:
        yield f"The {model} has no answers: the test set is empty."
    elif empty := [
        name for name in columns if not kind.may_be_empty(name) and table.column(name).null_count
    ]:
        yield f"The {model}'s answers have empty values in {phrasing.listed(empty)}."
    else:
        keys = keys_of(table)
        if twice := len(keys) - len(np.unique(keys, axis=0)):
            yield (
                f"The {model} has more than one answer to {phrasing.count(twice, 'test example')}."
            )
        yield from kind.value_problems(model, table, evidence, rules)
        for name in slices:
            if table.column(name).null_count == table.num_rows:
                yield f"The slicing column {name} is empty."


def _fits(name: str, columns: tuple[str, ...], table: pa.Table) -> bool:
    kind = table.schema.field(name).type
    # A column to slice by may be called like a number of another task.
    return NUMBERS[name](kind) if name in columns and name in NUMBERS else is_text(kind)


def _where(part: Any, rows: np.ndarray) -> Any:
    if isinstance(part, dict):
        return {name: values[rows] for name, values in part.items()}
    return part[rows] if isinstance(part, np.ndarray) else part
