"""The evidence for a verdict: both models' score tables, their validation, and their pairing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.task_tables import GROUP_COLUMN, METRICS
from tasks.evaluate.score_table import is_text, keys_of, sorted_rows, values_of
from tasks.gate import phrasing
from tasks.gate.exact_tests import Interval
from tasks.gate.phrasing import MetricPhrasing

NO_BASELINE = "none"
UNTRAINED = "untrained base"
COLUMN_TYPES: dict[str, Any] = {
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
"""The type check for each required column; all other columns are strings."""


@dataclass(frozen=True)
class Evidence:
    """Everything the gate knows about the two models.

    Attributes:
        candidate: Its score table, with the columns that `tasks.contracts.results.Scored` lists.
        baseline: The baseline's score table for the same examples; None without a baseline. Its
            `loss` counts only on examples whose label the baseline knows.
        candidate_labels: The labels that the candidate can predict; empty for language models.
        baseline_labels: The labels that the baseline can predict; None without a baseline.
        candidate_seen: Hashes of the inputs it was trained and validated on, uint64, shape (n, 2),
            pairs (hash_hi, hash_lo); None if unknown.
        baseline_seen: The same for the baseline.
        latency_ms: The candidate's milliseconds per example (per token if it generates answers);
            None if not measured.
        size_bytes: Size of the candidate's files.
        task: The task of both models.
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
class MetricComparison:
    """Two models compared by one metric on the same examples.

    Attributes:
        candidate, baseline, difference, interval: As in `RuleOutcome`.
        p_value: One-sided.
        detectable: The difference that the test would detect with 80% probability; None if it
            could not detect any.
        discordant: (gained, lost) if answers are right or wrong; else None.
        worse_p: One-sided p-value for the hypothesis that the candidate is no worse at all.
        approximate: Whether there are so many examples that the normal approximation was used.
        effective: Of weighted examples, how many of equal weight would say as much; 0 otherwise.
        equal_passes: Of "not worse", the probability that an equally good candidate passes.
        examples_needed: About how many examples it takes for 80%.
    """

    candidate: float
    baseline: float
    difference: float
    interval: Interval
    p_value: float
    detectable: float | None
    discordant: tuple[int, int] | None = None
    worse_p: float = 1.0
    approximate: bool = False
    effective: int = 0
    equal_passes: float | None = None
    examples_needed: int = 0


@dataclass(frozen=True)
class PairedAnswers(ABC):
    """Both models' answers, row by row, in the order of the examples' hashes.

    All arrays have the same length. Without a baseline, its answers equal the candidate's.

    Attributes:
        seen: Whether a model saw the example in training.
        slice_columns: The values of each column to slice by.
        groups: A whole number for each example, equal for those that belong together; None if none
            do.
    """

    seen: np.ndarray
    slice_columns: dict[str, np.ndarray]
    groups: np.ndarray | None

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def draws(self) -> int:
        """How many examples were drawn independently: one for each group."""
        return len(self) if self.groups is None else len(np.unique(self.groups))

    def where(self, rows: np.ndarray) -> Self:
        """The chosen rows only; `rows` is a mask of shape (n,)."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: _where(part, rows) for name, part in parts.items()})

    def known_to(self, labels: tuple[str, ...] | None) -> Self:
        """The rows on which a comparison with a model that predicts these labels is fair."""
        return self

    def scored_by(self, metric: str) -> Self:
        """The rows that have a value of the metric; an LLM judge may have compared only some."""
        return self

    @abstractmethod
    def phrasing_of(self, metric: str) -> MetricPhrasing:
        """The words and units for a metric."""

    @abstractmethod
    def slice_metric(self, rules: GateRecipe) -> str:
        """The metric by which slices are compared."""

    @abstractmethod
    def compare(self, rules: GateRecipe, margin: float) -> MetricComparison:
        """Test the claim by the recipe's metric; a margin of 0 means "better"."""

    @abstractmethod
    def compare_slice(
        self, rows: np.ndarray, rules: GateRecipe, slice_count: int
    ) -> MetricComparison:
        """Test whether the candidate is worse on one slice, given by a mask, of several slices."""

    @abstractmethod
    def estimate(self, metric: str, confidence: float) -> tuple[float, Interval]:
        """The candidate's value of a metric, and its confidence interval."""


class ScoreTables(ABC):
    """The score tables of one kind of task: their columns, valid values, and pairing.

    Attributes:
        latency_unit: The unit of the latency, for sentences.
    """

    latency_unit = "ms per example"

    @abstractmethod
    def required_columns(self, rules: GateRecipe) -> tuple[str, ...]:
        """The columns that each table must have, apart from those to slice by."""

    @abstractmethod
    def may_have_nulls(self, column: str) -> bool:
        """Whether nulls in a column are left to `value_problems`."""

    @abstractmethod
    def value_problems(
        self, model: str, table: pa.Table, evidence: Evidence, rules: GateRecipe
    ) -> Iterator[str]:
        """Sentences on invalid values in a table whose columns are complete."""

    @abstractmethod
    def pairing_problems(self, evidence: Evidence, rules: GateRecipe) -> Iterator[str]:
        """Sentences on what one table contradicts in the other, or in the rest of the evidence."""

    @abstractmethod
    def join(self, evidence: Evidence, slices: tuple[str, ...]) -> PairedAnswers:
        """Pair both models' answers."""


def problems(
    tables: ScoreTables,
    evidence: Evidence,
    rules: GateRecipe,
    slices: tuple[str, ...],
    baseline: str,
) -> list[str]:
    """Sentences on why the evidence cannot be used; empty if it can."""
    known = METRICS[evidence.task]
    if unknown := sorted({rules.metric, *rules.floors} - set(known)):
        return [
            f"A model for {evidence.task} has no {phrasing.listed(unknown)}. Its metrics are "
            f"{', '.join(known)}."
        ]
    if (baseline == NO_BASELINE) != (evidence.baseline is None):
        return [_mismatched_baseline(baseline)]
    if evidence.baseline is None and not rules.floors:
        return [
            "There is neither a baseline nor a floor, so the candidate would have nothing to pass."
        ]
    classifier = evidence.task == "text-classification"
    if classifier and evidence.baseline is not None and not evidence.baseline_labels:
        return ["The labels that the baseline can predict are unknown."]
    found = list(_table_problems(tables, "candidate", evidence.candidate, evidence, rules, slices))
    if evidence.baseline is not None:
        found += _table_problems(tables, "baseline", evidence.baseline, evidence, rules, ())
    for name, seen in (
        ("candidate", evidence.candidate_seen),
        ("baseline", evidence.baseline_seen),
    ):
        if seen is not None and (seen.dtype != np.uint64 or seen.ndim != 2 or seen.shape[1] != 2):
            found.append(f"The list of inputs that the {name} saw does not hold pairs of hashes.")
    return found or list(tables.pairing_problems(evidence, rules))


def seen_by_either(evidence: Evidence, keys: np.ndarray) -> np.ndarray:
    """Whether a model saw each key in training, bool, shape (n,); False if unknown."""
    return contains(evidence.candidate_seen, keys) | contains(evidence.baseline_seen, keys)


def unpaired_examples(evidence: Evidence) -> Iterator[str]:
    """Sentences on examples that only one of the models answered."""
    candidate, baseline = sorted_rows(evidence.candidate), sorted_rows(evidence.baseline)
    if missing := int((~contains(keys_of(baseline), keys_of(candidate))).sum()):
        yield f"The baseline has no answer to {phrasing.count(missing, 'test example')}."
    if missing := int((~contains(keys_of(candidate), keys_of(baseline))).sum()):
        yield f"The candidate has no answer to {phrasing.count(missing, 'test example')}."


def baseline_seen_status(
    evidence: Evidence, baseline: str
) -> Literal["known", "unknown", "no baseline"]:
    """Whether the baseline's training data is known, as `Verdict.baseline_seen` states it."""
    if baseline == NO_BASELINE:
        return "no baseline"
    return "unknown" if evidence.baseline_seen is None else "known"


def contains(seen: np.ndarray | None, keys: np.ndarray) -> np.ndarray:
    """Whether each key is in `seen`, bool, shape (n,).

    Args:
        seen: Pairs of hashes, uint64, shape (m, 2); None counts as empty.
        keys: Pairs of hashes, uint64, shape (n, 2).
    """
    if seen is None:
        return np.zeros(len(keys), bool)
    return pc.is_in(_packed(keys), value_set=_packed(seen)).to_numpy(zero_copy_only=False)


def groups_of(table: pa.Table) -> np.ndarray | None:
    """A whole number for each row of a score table, equal for rows that belong together, shape
    (n,); None if none do. A row without a group is one of its own."""
    if GROUP_COLUMN not in table.column_names:
        return None
    names = values_of(table, GROUP_COLUMN)
    alone = (names == "") | (names == "(none)")
    _, codes = np.unique(names.astype(str), return_inverse=True)
    codes[alone] = len(codes) + np.arange(alone.sum())
    return codes if len(np.unique(codes)) < len(codes) else None


def _packed(keys: np.ndarray) -> pa.Array:
    """Pairs of hashes as one column of 16 bytes."""
    buffer = pa.py_buffer(np.ascontiguousarray(keys, "<u8").tobytes())
    return pa.Array.from_buffers(pa.binary(16), len(keys), [None, buffer])


def _mismatched_baseline(baseline: str) -> str:
    if baseline == NO_BASELINE:
        return "The verdict was requested without a baseline, but a baseline has answers."
    return f"The answers of the baseline ({baseline}) are missing."


def _table_problems(
    tables: ScoreTables,
    model: str,
    table: pa.Table,
    evidence: Evidence,
    rules: GateRecipe,
    slices: tuple[str, ...],
) -> Iterator[str]:
    """Sentences on what is wrong with one table; a problem hides those that follow from it.

    Args:
        tables: What the table must hold.
        model: `candidate` or `baseline`.
        table: The model's score table.
        evidence, rules: As in `problems`.
        slices: Further columns that the table must have.
    """
    columns = tables.required_columns(rules)
    wanted = dict.fromkeys((*columns, *slices))
    if missing := [name for name in wanted if table.column_names.count(name) != 1]:
        yield f"The {model}'s scores lack or repeat the columns {phrasing.listed(missing)}."
    elif wrong := [name for name in wanted if not _has_type(name, columns, table)]:
        yield f"The {model}'s scores have columns of the wrong type: {phrasing.listed(wrong)}."
    elif not table.num_rows:
        yield f"The {model} has no answers: the test set is empty."
    elif empty := [
        name
        for name in columns
        if not tables.may_have_nulls(name) and table.column(name).null_count
    ]:
        yield f"The {model}'s scores have empty values in {phrasing.listed(empty)}."
    else:
        keys = keys_of(table)
        if twice := len(keys) - len(pc.unique(_packed(keys))):
            yield (
                f"The {model} has more than one answer to {phrasing.count(twice, 'test example')}."
            )
        yield from tables.value_problems(model, table, evidence, rules)
        for name in slices:
            if table.column(name).null_count == table.num_rows:
                yield f"The slice column {name} is empty."


def _has_type(name: str, columns: tuple[str, ...], table: pa.Table) -> bool:
    kind = table.schema.field(name).type
    # A column to slice by may have the name of another task's number.
    return COLUMN_TYPES[name](kind) if name in columns and name in COLUMN_TYPES else is_text(kind)


def _where(part: Any, rows: np.ndarray) -> Any:
    if isinstance(part, dict):
        return {name: values[rows] for name, values in part.items()}
    return part[rows] if isinstance(part, np.ndarray) else part
