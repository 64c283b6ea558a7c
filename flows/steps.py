"""Steps: what the workers of a pool run for a retraining, such as training on a GPU.

Nobody starts it by hand: a run whose recipe names a pool does, and waits (tasks/runtime/pool.py).
Deploy it with `python -m infra.gpu_workers`.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

import orjson
from prefect import flow
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Completed, Failed, State
from prefect.utilities.urls import url_for

from flows import endings
from tasks.contracts.base import Contract
from tasks.contracts.errors import (
    CodeFailed,
    PoolChanged,
    PoolFailed,
    StorageFailed,
    describe,
)
from tasks.contracts.machine import Machine
from tasks.contracts.pool import Ending, Request, StepRequest
from tasks.contracts.results import StepResult
from tasks.evaluate.benchmark_step import run_benchmarks
from tasks.evaluate.step import score
from tasks.finetune.gguf_export_step import check_gguf_export, export_gguf
from tasks.finetune.step import finetune
from tasks.report.run_report import RunReport
from tasks.runtime.context import RunContext
from tasks.runtime.machine import this_machine
from tasks.runtime.pool import as_plain
from tasks.runtime.pool_run import PoolRunStatus, forget_old_runs
from tasks.runtime.telling import telling
from tasks.runtime.termination import watch_sigterm
from tasks.storage.source_copies import from_stored_copies
from tasks.storage.store import Store, open_store

POOL_STEPS = {
    step.name: step for step in (check_gguf_export, finetune, export_gguf, score, run_benchmarks)
}
CAUSES = {"unwanted": "nobody waits for it", "cancelled": "cancelled", "stopped": "preempted"}
"""Why a run stopped, for its page."""
LIBRARIES = tuple(sorted({name for step in POOL_STEPS.values() for name in step.libraries}))
"""Distributions whose versions decide what a pool's workers compute."""


@flow(
    name="steps",
    validate_parameters=True,
    on_cancellation=[endings.close_report_of_pool_run],
    on_crashed=[endings.close_report_of_pool_run],
)
def steps(request: str, store: str, run_id: str, run_name: str) -> State:
    """Do the steps of a request, and record them in the store.

    Args:
        request: The request's digest.
        store: The store's URI, where the request is and the results go.
        run_id: The run that asks; results are recorded under it.
        run_name: Its name.
    """
    opened = open_store(store)
    asked = _read(request, opened)
    own_id = this_run.id or ""
    report = RunReport(asked.name, own_id, deployed=True, asked_by=run_id)
    link = url_for("flow-run", obj_id=run_id)
    report.add_fact("for", f"run [{run_name}]({link})" if link else f"run {run_name}")
    context = RunContext(
        store=store,
        run_id=run_id,
        run_name=run_name,
        refresh=asked.refresh,
        repair=asked.repair,
    )
    status = PoolRunStatus(opened, own_id)

    with status.kept_up(), watch_sigterm():
        try:
            _refuse_other_machine(asked, context)
            with telling(shown := _Shown(status, report)):
                _do(asked, context, report, shown)
        except (TerminationSignal, KeyboardInterrupt) as signal:
            kept = getattr(signal, "kept", "")
            sentence, ended = _why_stopped(own_id, status)
            status.end(ended, kept=kept)
            outcome = "Crashed" if ended == "stopped" else "Cancelled"
            report.stop(outcome, CAUSES[ended], sentence, endings.PUBLISHES_NOTHING, kept)
            if ended == "stopped":
                raise  # It makes the run Crashed, or reschedules it where Prefect is told to.
            return Cancelled(message=" ".join(filter(None, [sentence, kept])))
        except Exception as problem:
            error = describe(problem)
            status.end("failed", error)
            report.fail(error, endings.PUBLISHES_NOTHING)
            if type(error) is CodeFailed and error is not problem:
                raise
            return Failed(name=error.title, message=str(error))
        status.end("done")
        said = f"{len(asked.steps)} steps are recorded in {store}."
        report.end("Done", said if asked.steps else "The machine is described in the store.")
        forget_old_runs(opened)
        return Completed(message=f"{len(asked.steps)} steps for run {run_name}")


def _read(digest: str, store: Store) -> Request:
    found = store.objects.read(f"requests/{digest}.json")
    if found is None:
        # Nobody can be told through a store that is not the same.
        raise StorageFailed(
            f"store {store.uri}, as {platform.node()} sees it",
            f"no request {digest[:12]}",
            "the store of the run that asks",
            "use a store that both machines reach: s3://bucket/prefix, or a shared folder",
        )
    return Request.model_validate_json(found[0])


def _refuse_other_machine(request: Request, context: RunContext) -> None:
    """Refuse a request that was made for other workers, and let the next one know these.

    Raises:
        PoolChanged: This machine is another one than the request says.
        PoolFailed: This machine has other code.
    """
    pool, host = _this_pool(), platform.node()
    mine = this_machine(LIBRARIES)
    differences = request.machine.differences(mine) if request.machine else []
    if differences or not request.machine:
        remember_machine(pool, mine, context)
    if differences:
        raise PoolChanged(
            f"pool {pool}",
            f"a worker on {host} that differs from what the run planned for "
            f"({'; '.join(differences)})",
            "workers of one kind in a pool, with the same library versions",
            "start the run again: it plans for this worker. If the pool has workers of several "
            "kinds, give each kind a pool of its own",
        )
    for name, digest in request.code.items():
        if POOL_STEPS[name].code_digest != digest:
            raise PoolFailed(
                f"pool {pool}",
                f"other code of the step {name} on its worker on {host}",
                "the same version of Burnish there as where the run was started",
                "install the same version on both",
            )


def _this_pool() -> str:
    """The pool whose worker runs this: its deployment has its name."""
    from prefect.runtime import deployment

    return deployment.name or "none"


def remember_machine(pool: str, machine: Machine, context: RunContext) -> None:
    """Keep what a pool's workers are, for the runs that plan for them."""
    data = machine.model_dump_json(indent=1).encode()
    open_store(context.store).objects.write(machine_path(pool), data)


def machine_path(pool: str) -> str:
    """Where the store says what a pool's workers are."""
    return f"pools/{pool}.json"


class _Shown:
    """What is being done, for this run's page and for the runs that wait for it."""

    def __init__(self, status: PoolRunStatus, report: RunReport) -> None:
        self._status, self._report = status, report

    def status(self, sentence: str) -> None:
        """Show what is being done."""
        self._status.doing(sentence)
        self._report.status(sentence)

    def training(self, sentence: str, history: Sequence[dict[str, float]]) -> None:
        """Show how far the training is."""
        self._status.doing(sentence)
        self._report.training(sentence, history)


def _do(request: Request, context: RunContext, report: RunReport, shown: _Shown) -> None:
    """Do the steps, each with what it takes from those before."""
    results: list[StepResult] = []
    for number, wanted in enumerate(request.steps, 1):
        step = POOL_STEPS[wanted.step]
        shown.status(f"Step {number} of {len(request.steps)}: {step.name}.")
        inputs = from_stored_copies(inputs_of(wanted, results), open_store(context.store))
        results.append(step(inputs, context))
        report.add_step(step.name, results[-1], "")


def inputs_of(wanted: StepRequest, results: list[StepResult]) -> Contract:
    """The inputs of a requested step.

    Args:
        wanted: The step.
        results: Of the steps before it in the request.
    """
    taken = {
        name: as_plain(getattr(results[source.step], source.field))
        for name, source in wanted.takes.items()
    }
    plain = orjson.dumps(wanted.inputs | taken)
    return POOL_STEPS[wanted.step].inputs.model_validate_json(plain)


def _why_stopped(own_id: str, status: PoolRunStatus) -> tuple[str, Ending]:
    if status.unwanted:
        return "Nobody waits for this run any more.", "unwanted"
    if endings.is_cancelling(own_id):
        return "A person, or the API, cancelled the run.", "cancelled"
    return "The worker was asked to stop (SIGTERM), such as by a shutdown.", "stopped"
