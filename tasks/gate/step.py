"""The gate step: compare the candidate with the baseline, and explain the verdict."""

from __future__ import annotations

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.results import Comparisons, Scored
from tasks.contracts.verdict import AnchorState, GateResult
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.storage.store import open_store


class AnchorInputs(Contract):
    """The anchor, as in `tasks.gate.anchor_rule.Anchor`, with artifacts in place of tables."""

    state: AnchorState
    scored: Scored | None = None
    seen: Artifact | None = None
    metric: str = ""
    problem: str = ""
    fixed: bool = False


class GateInputs(Contract):
    """The evidence and the rules.

    Attributes:
        candidate, baseline: Their scores on the test examples.
        baseline_name: A release's version, `untrained base`, or `none`.
        baseline_entry: Number of the log entry that deployed the baseline; 0 without one.
        candidate_seen, baseline_seen: Artifacts with `seen.npy`, hashes of the inputs that each
            model was trained and validated on; None if unknown.
        rules, slices: The recipe's `gate` and `evaluation.slices`.
        test_digest: The test set's identity.
        look_number: How many verdicts have used the test set, including this one.
        looks: The same, counted by shared rows, as in `Verdict`.
        anchor: The anchor; None if the recipe wants none.
        task: The task of both models.
        guard_candidate, guard_baseline: Their scores on the guard set; None without one.
        guard_task: The task of the guard set.
        comparisons: The LLM judge's comparisons of their answers; None without a judge.
        gguf_bytes: Size of the GGUF export that ships beside the candidate; 0 without one.
    """

    candidate: Scored
    baseline: Scored | None
    baseline_name: str
    baseline_entry: int
    candidate_seen: Artifact
    baseline_seen: Artifact | None
    rules: GateRecipe
    slices: tuple[str, ...]
    test_digest: str
    look_number: int
    looks: float = 0.0
    anchor: AnchorInputs | None = None
    task: Task = "text-classification"
    guard_candidate: Scored | None = None
    guard_baseline: Scored | None = None
    guard_task: Task = "instruction"
    comparisons: Comparisons | None = None
    gguf_bytes: int = 0


@step(
    "gate",
    result=GateResult,
    code=("tasks.gate.step", "tasks.gate.decide", "tasks.evaluate.llm_judge_verdicts"),
    libraries=("numpy", "scipy", "statsmodels", "scikit-learn"),
)
def gate(inputs: GateInputs, context: RunContext) -> GateResult:
    """Apply the recipe's rules. Missing values and values that are not numbers reject."""
    import numpy as np
    import pyarrow.parquet as pq

    # These load scipy and scikit-learn, which an up-to-date run does not need.
    from tasks.evaluate.llm_judge_verdicts import with_preferred
    from tasks.gate.anchor_rule import Anchor
    from tasks.gate.decide import decide
    from tasks.gate.evidence import Evidence
    from tasks.gate.guard_rule import Guard

    store = open_store(context.store)

    def scores(scored: Scored | None):
        return scored and pq.read_table(store.file(scored.artifact, "scores.parquet"))

    def seen(artifact: Artifact | None):
        return artifact and np.load(store.file(artifact, "seen.npy"), allow_pickle=False)

    candidate, baseline = inputs.candidate, inputs.baseline
    tables = scores(candidate), scores(baseline)
    if inputs.comparisons:
        compared = store.file(inputs.comparisons.artifact, "comparisons.parquet")
        tables = with_preferred(*tables, pq.read_table(compared))
    guard = None
    if inputs.guard_candidate and inputs.guard_baseline:
        guarded = scores(inputs.guard_candidate), scores(inputs.guard_baseline)
        guard = Guard(*guarded, inputs.guard_task)
    anchor = None
    if inputs.anchor:
        scored = inputs.anchor.scored
        anchor = Anchor(
            state=inputs.anchor.state,
            scores=scores(scored),
            labels=scored.labels if scored else (),
            seen=seen(inputs.anchor.seen),
            metric=inputs.anchor.metric,
            problem=inputs.anchor.problem,
            fixed=inputs.anchor.fixed,
        )
    verdict = decide(
        Evidence(
            candidate=tables[0],
            baseline=tables[1],
            candidate_labels=candidate.labels,
            baseline_labels=baseline.labels if baseline else None,
            candidate_seen=seen(inputs.candidate_seen),
            baseline_seen=seen(inputs.baseline_seen),
            latency_ms=candidate.milliseconds_per_example,
            size_bytes=candidate.size_bytes + inputs.gguf_bytes,
            task=inputs.task,
        ),
        inputs.rules,
        inputs.slices,
        candidate_digest=candidate.model_digest,
        baseline=inputs.baseline_name,
        baseline_digest=baseline.model_digest if baseline else "",
        baseline_entry=inputs.baseline_entry,
        test_digest=inputs.test_digest,
        look_number=inputs.look_number,
        looks=inputs.looks,
        guard=guard,
        anchor=anchor,
    )
    with store.scratch() as scratch:
        out = scratch / "verdict"
        out.mkdir()
        (out / "verdict.json").write_text(verdict.model_dump_json(indent=1))
        return GateResult(artifact=store.put("verdict", out), verdict=verdict)
