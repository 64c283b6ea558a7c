"""A run whose recipe names a pool: what its workers are, and what they are asked to do.

Training and scoring go into one request, since a worker takes seconds to start. The run then meets
their records: its own steps are *Cached*.
"""

from __future__ import annotations

from pydantic import ValidationError

from flows import score_inputs, stage_inputs
from flows.anchor import AnchorChoice, choose_anchor
from flows.score import baseline_score_inputs
from flows.steps import POOL_STEPS, inputs_of, machine_path
from tasks.contracts.base import Contract
from tasks.contracts.candidate import Planned, Trained
from tasks.contracts.errors import PoolFailed
from tasks.contracts.machine import Machine
from tasks.contracts.pool import Request, StepRequest, Taken
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import LogEntry
from tasks.contracts.results import Finetuned, StepResult
from tasks.evaluate.benchmark_step import BenchmarkTasks, run_benchmarks
from tasks.evaluate.step import score
from tasks.finetune.gguf_export_step import check_gguf_export, export_gguf
from tasks.finetune.step import finetune
from tasks.release import deployment_log
from tasks.report.run_report import RunReport
from tasks.runtime.context import RunContext
from tasks.runtime.pool import check_pool, compute_on_pool, step_request
from tasks.runtime.telling import telling
from tasks.storage.store import open_store


def with_pool(recipe: Recipe, context: RunContext, report: RunReport) -> RunContext:
    """The context of a run with what its pool's workers are; as it was without a pool.

    They are asked once, by a short run; what they said stays in the store until one of them finds
    that it is not so any more.

    Raises:
        PoolFailed: The pool cannot be asked.
    """
    pool = recipe.plan.pool
    if not pool:
        return context
    check_pool(pool)
    context = context.model_copy(update={"pool": pool})
    if _machine(context) is None:
        report.status(f"Asking a worker of pool {pool} what it has.")
        request = Request(name=recipe.name)
        with telling(report):
            compute_on_pool(
                request, f"machine of {pool}", lambda: _machine(context) is not None, context
            )
    machine = _machine(context)
    if machine is None:
        raise PoolFailed(
            f"pool {pool}",
            f"no {machine_path(pool)} in {context.store} after its run",
            "a worker with the same store",
            "use a store that both machines reach: s3://bucket/prefix, or a shared folder",
        )
    return context.model_copy(update={"machine": machine})


def _machine(context: RunContext) -> Machine | None:
    found = open_store(context.store).objects.read(machine_path(context.pool))
    try:
        return Machine.model_validate_json(found[0]) if found else None
    except ValidationError:
        return None  # Of another version of Burnish, perhaps.


def train_on_pool(
    recipe: Recipe,
    planned: Planned,
    benchmarks: BenchmarkTasks | None,
    context: RunContext,
    report: RunReport,
) -> RunContext:
    """Have the pool train, and score what it trained, unless the training is recorded.

    Returns:
        The context without the refreshing that the pool has done.
    """
    if not context.pool:
        return context
    steps = _Steps(context)
    if check := stage_inputs.gguf_check_inputs(recipe, planned):
        steps.add(check_gguf_export, check)
    training = stage_inputs.finetune_inputs(recipe, planned)
    trained = steps.add(finetune, training)
    artifact = Taken(step=trained, field="artifact")
    # What the export takes is not known yet; any artifact will do in its place.
    if export := stage_inputs.gguf_export_inputs(recipe, planned.machine, training.tokens):
        steps.add(export_gguf, export, model=artifact)
    if steps.all_done():
        return context
    store = open_store(context.store)
    deployed = deployment_log.deployed(store, recipe.name, recipe.announce.channel)
    anchor = choose_anchor(recipe, planned, deployed, context)
    _add_scoring(steps, recipe, planned, None, trained, deployed, anchor, benchmarks, context)
    report.status(f"Training on pool {context.pool}.")
    done = steps.compute(recipe.name, report).refresh
    left = tuple(name for name in context.refresh if name not in done)
    return context.model_copy(update={"refresh": left})


def score_on_pool(
    recipe: Recipe,
    trained: Trained,
    deployed: LogEntry | None,
    anchor: AnchorChoice | None,
    benchmarks: BenchmarkTasks | None,
    context: RunContext,
    report: RunReport,
) -> None:
    """Have the pool score what is trained already, unless the scores are recorded."""
    if not context.pool:
        return
    steps = _Steps(context)
    _add_scoring(
        steps, recipe, trained, trained.finetuned, 0, deployed, anchor, benchmarks, context
    )
    if not steps.all_done():
        report.status(f"Scoring on pool {context.pool}.")
        steps.compute(recipe.name, report)


class _Steps:
    """The steps of a request that is being made."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._asked: list[StepRequest] = []

    def add(self, step, inputs: Contract, **takes: Taken) -> int:
        """Add a step; returns its place."""
        self._asked.append(step_request(step, inputs, self._context, **takes))
        return len(self._asked) - 1

    def all_done(self) -> bool:
        """Whether every step is recorded, and none is to be refreshed."""
        refreshed = any(asked.step in self._context.refresh for asked in self._asked)
        return not refreshed and self._first_missing() is None

    def compute(self, name: str, report: RunReport) -> Request:
        """Have the pool do what is not recorded; returns what it was asked."""
        context = self._context
        names = {asked.step for asked in self._asked}
        request = Request(
            name=name,
            steps=tuple(self._asked),
            machine=context.machine,
            code={name: POOL_STEPS[name].code_digest for name in sorted(names)},
            refresh=tuple(step for step in context.refresh if step in names),
            repair=tuple(step for step in context.repair if step in names),
        )
        key = self._first_missing() or self._first_key()

        def show(link: str) -> None:
            report.add_fact(f"on pool {context.pool}", link)

        with telling(report):
            compute_on_pool(request, key, lambda: self._first_missing() != key, context, show)
        return request

    def _first_key(self) -> str:
        asked = self._asked[0]
        return POOL_STEPS[asked.step].key(inputs_of(asked, []), self._context)

    def _first_missing(self) -> str | None:
        """The key of the first step that is not recorded; None if there is none."""
        results: list[StepResult] = []
        for asked in self._asked:
            step = POOL_STEPS[asked.step]
            inputs = inputs_of(asked, results)
            result = step.cached(inputs, self._context)
            if result is None:
                return step.key(inputs, self._context)
            results.append(result)
        return None


def _add_scoring(
    steps: _Steps,
    recipe: Recipe,
    planned: Planned,
    finetuned: Finetuned | None,
    trained: int,
    deployed: LogEntry | None,
    anchor: AnchorChoice | None,
    benchmarks: BenchmarkTasks | None,
    context: RunContext,
) -> None:
    """Add the scoring of candidate, baseline and anchor.

    Args:
        finetuned: The candidate; None if it is the result of the request's step `trained`.
    """
    taken = {} if finetuned else {"model": Taken(step=trained, field="artifact")}
    checked = (
        {}
        if finetuned
        else {name: Taken(step=trained, field=name) for name in ("check", "check_loss")}
    )
    candidate = score_inputs.candidate_score_inputs(recipe, planned, finetuned)
    baseline = baseline_score_inputs(recipe, planned, deployed, context)
    steps.add(score, candidate, **taken, **checked)
    if baseline:
        steps.add(score, baseline)
    if anchor and anchor.scoring and anchor.scoring != baseline:
        steps.add(score, anchor.scoring)
    if benchmarks:
        steps.add(
            run_benchmarks, score_inputs.benchmark_inputs(recipe, benchmarks, candidate), **taken
        )
        if baseline:
            steps.add(run_benchmarks, score_inputs.benchmark_inputs(recipe, benchmarks, baseline))
    if planned.guard:
        base = baseline or score_inputs.untrained_score_inputs(recipe, planned)
        steps.add(score, score_inputs.guard_score_inputs(candidate, planned.guard), **taken)
        steps.add(score, score_inputs.guard_score_inputs(base, planned.guard))
