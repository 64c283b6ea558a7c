"""How a run ends: its last state, and what its report says then.

Whatever ends a run, its report names the outcome, and says what consumers see at that moment.
"""

from __future__ import annotations

import contextlib

from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Failed, State

from tasks.contracts.errors import BurnishError, Preempted
from tasks.contracts.recipe import Recipe
from tasks.release.delivery import owed
from tasks.release.visibility import owed_sentence, visible_now
from tasks.report.run_report import FINISHED_STEPS, RunReport, close_report
from tasks.runtime.context import RunContext
from tasks.runtime.prefect_api import brief_client
from tasks.storage.store import default_store, open_store

PUBLISHES_NOTHING = "nothing by this run: only the run that asked for it publishes."


def conclude(
    outcome: str, sentence: str, recipe: Recipe, context: RunContext, report: RunReport
) -> State:
    """End a run that reached a verdict."""
    store = open_store(context.store)
    # The run has done its work: it does not fail because this cannot be read.
    with contextlib.suppress(BurnishError):
        report.warn(*map(owed_sentence, owed(store, recipe.name, recipe.announce.channel)))
    report.end(outcome, sentence)
    return Completed(name=outcome, message=sentence, data=report.text())


def fail(error: BurnishError, recipe: Recipe, context: RunContext, report: RunReport) -> State:
    """End a run that failed for a known cause."""
    visible = _visible(recipe, context)
    report.fail(error, visible)
    return Failed(name=error.cause.capitalize(), message=f"{error}. {visible}")


def stop(
    request: TerminationSignal | KeyboardInterrupt,
    recipe: Recipe,
    context: RunContext,
    report: RunReport,
) -> State | None:
    """Report that a run was asked to stop.

    Returns:
        The state of a cancelled run. None if the request came from elsewhere: raised again, it
        makes the run *Crashed*, or reschedules it where Prefect is configured to.
    """
    visible, kept = _visible(recipe, context), getattr(request, "kept", "")
    if is_cancelling(context.run_id):
        sentence = "A person, or the API, cancelled the run."
        report.stop("Cancelled", "cancelled", sentence, visible, kept)
        return Cancelled(message=" ".join(filter(None, [sentence, visible, kept])))
    signal = "SIGTERM" if isinstance(request, TerminationSignal) else "SIGINT, as by Ctrl-C"
    sentence = (
        f"The run was asked to stop ({signal}), such as by an eviction or a shutdown of its worker."
    )
    report.stop("Crashed", Preempted.cause, sentence, visible, kept)
    return None


def is_cancelling(run_id: str) -> bool:
    """Whether Prefect was asked to cancel a run; False if it cannot be asked."""
    try:
        with brief_client(seconds=5) as client:
            state = client.read_flow_run(run_id).state
    except Exception:  # Whatever it is: the run must stop now.
        return False
    return state is not None and state.is_cancelling()


def close_report_of_ended_run(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Complete the report of a run that could not do so itself, since its process was killed.

    Prefect calls this in the worker, by these argument names, if the run's process is gone.
    """
    recipe = Recipe.model_validate(flow_run.parameters["recipe"])
    store = open_store(recipe.store or default_store())
    visible = visible_now(
        store, recipe.name, recipe.announce.channel, flow_run.name, flow_run.start_time
    )
    close_report(
        flow_run.id,
        "Cancelled" if state.is_cancelling() else state.name or "Ended",
        f"- **Cause:** {state.message or 'the process ended without a message'}\n"
        f"- **Visible to consumers:** {visible}\n"
        "- **Next:** press Retry on the run's page, or run "
        f"`prefect flow-run retry {flow_run.id}`. {FINISHED_STEPS}",
    )


def close_report_of_pool_run(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Complete the report of a pool's run that could not do so itself, since its process was
    killed."""
    asked_by = flow_run.parameters["run_id"]
    close_report(
        flow_run.id,
        "Cancelled" if state.is_cancelling() else state.name or "Ended",
        f"- **Cause:** {state.message or 'the process ended without a message'}\n"
        f"- **Visible to consumers:** {PUBLISHES_NOTHING}\n"
        "- **Next:** if the run that asked for it still waits, it starts another one. Otherwise "
        f"run `prefect flow-run retry {asked_by}`. {FINISHED_STEPS}",
    )


def _visible(recipe: Recipe, context: RunContext) -> str:
    run = FlowRunContext.get()
    return visible_now(
        open_store(context.store),
        recipe.name,
        recipe.announce.channel,
        context.run_name,
        run.flow_run.start_time or run.start_time if run and run.flow_run else None,
    )
