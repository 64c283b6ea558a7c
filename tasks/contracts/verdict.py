"""The verdict of the gate: the outcome of each rule, with its evidence."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.contracts.base import Contract
from tasks.contracts.results import StepResult

RuleKind = Literal[
    "better", "not worse", "anchor", "floor", "budget", "no harm", "enough examples", "error"
]


class RuleOutcome(Contract):
    """The outcome of one rule of the gate.

    Attributes:
        rule: The kind of claim.
        name: For people: `accuracy not worse than the baseline by more than 0.02`.
        metric: `accuracy`, `f1`, `latency_ms`, `size_mb`…
        slice: The slice it concerns, `label=sport`; empty for the whole test set.
        candidate, baseline: The metric's value for each; None if there is none.
        difference: Candidate minus baseline; for perplexity, as a share of the baseline's.
        interval: Confidence interval of the difference (of the candidate's value for a floor).
        p_value: Of the one-sided test; None without a test.
        examples: Number of test examples that the rule was applied to.
        discordant: (candidate right and baseline wrong, candidate wrong and baseline right).
        detectable: The difference that this test set detects with 80% probability.
        equal_passes: Of "not worse", the probability that an equally good candidate passes.
        passed: Whether the rule holds. A rule that could not be computed does not hold.
        vetoes: Whether a failure of this rule alone rejects (a slice too small to tell does not).
        inconclusive: Whether it was not tested, or on too few examples to tell whether it holds.
        sentence: The outcome as a sentence.
    """

    rule: RuleKind
    name: str
    metric: str
    slice: str = ""
    candidate: float | None = None
    baseline: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    examples: int = 0
    discordant: tuple[int, int] | None = None
    detectable: float | None = None
    equal_passes: float | None = None
    passed: bool
    vetoes: bool = True
    inconclusive: bool = False
    sentence: str


class AnchorState(Contract):
    """The anchor: an earlier release that every candidate must not be worse than.

    Attributes:
        version: Of the release that the candidate was compared with; empty without one.
        entry: Number of the log entry that deployed it; 0 without one.
        moves: Why the candidate is the next anchor, once it is released; empty if it is not.
    """

    version: str = ""
    entry: int = 0
    moves: str = ""


class Verdict(Contract):
    """All rules together.

    Attributes:
        outcome: `rejected` if a rule that vetoes fails, else `promoted`.
        rules: Each rule's outcome.
        candidate_digest: Digest of the candidate's model.
        baseline: What it was compared with: a release's version, `untrained base`, or `none`.
        baseline_digest: Digest of the baseline's model; empty without one.
        baseline_entry: Number of the log entry that deployed the baseline; 0 without one.
        test_digest: The test set's identity.
        look_number: How many verdicts on this model have used the test set, including this one.
        looks: The same, counted by the rows that this test set shares with those of the earlier
            verdicts; 0 if unknown.
        examples: Test examples that were compared.
        dropped: Test examples that were excluded because a model saw them in training.
        baseline_seen: Whether the baseline's training data is known.
        anchor: What the candidate was compared with besides; None if the recipe wants none, or
            before there were anchors.
        summary: The verdict in one sentence.
    """

    cache_key_excludes: ClassVar[frozenset[str]] = frozenset({"summary"})

    schema_version: int = 1
    outcome: Literal["promoted", "rejected"]
    rules: tuple[RuleOutcome, ...]
    candidate_digest: str
    baseline: str
    baseline_digest: str
    baseline_entry: int
    test_digest: str
    look_number: int
    looks: float = 0.0
    examples: int
    dropped: int
    baseline_seen: Literal["known", "unknown", "no baseline"]
    anchor: AnchorState | None = None
    summary: str


class GateResult(StepResult):
    """The gate's result. The artifact (kind `verdict`) holds `verdict.json`."""

    verdict: Verdict
