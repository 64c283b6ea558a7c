"""How a run ends: its last state, and what its report says then.

Whatever ends a run, its report names the outcome, and says what consumers see at that moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from uuid import UUID

from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Completed, Failed, State

from flows.recipe_files import read_recipe
from flows.runbook import FILE, runbook
from tasks.contracts.errors import BurnishError, Preempted
from tasks.contracts.recipe import Recipe
from tasks.release.delivery import owed
from tasks.release.visibility import visible_now
from tasks.report.run_report import (
    FINISHED_STEPS,
    WAITING,
    Origin,
    RunReport,
    Section,
    close_report,
)
from tasks.runtime.context import RunContext
from tasks.runtime.prefect_api import brief_client
from tasks.storage.store import open_store

NOT_BEGUN = "Nothing was published by this run: it ended before its first step."
PUBLISHES_NOTHING = "nothing by this run: only the run that asked for it publishes."


def refuse(error: BurnishError, recipe: str) -> State:
    """End a run whose recipe cannot be used, so that it has not begun."""
    report = RunReport(recipe_name(recipe), this_run.id or "", deployment.id is not None)
    return fail_visibly(error, NOT_BEGUN, report)


def supersede(later: str, recipe: str) -> State:
    """End a late run before it begins, since another one of its schedule is due, too."""
    sentence = f"Run {later} of the same schedule is due, too, and does the same."
    report = RunReport(recipe_name(recipe), this_run.id or "", deployment.id is not None)
    report.end("Superseded", sentence)
    tag_outcome(this_run.id or "", "Superseded")
    return Completed(name="Superseded", message=f"Superseded. {sentence}")


def run_name() -> str:
    """The run's name: its recipe, and the words that Prefect has chosen."""
    name = recipe_name(this_run.parameters["recipe"])
    chosen = this_run.name or ""
    return chosen if chosen.startswith(f"{name}-") else f"{name}-{chosen}"


def recipe_name(recipe: str) -> str:
    """The name that a recipe gives itself; the name of its file if it cannot be read."""
    try:
        return read_recipe(recipe).name
    except BurnishError:
        return recipe.rpartition("/")[2].removesuffix(".yaml")


def conclude(
    outcome: str, sentence: str, recipe: Recipe, context: RunContext, report: RunReport
) -> State:
    """End a run that reached a verdict."""
    store = open_store(context.store)
    # The run has done its work: it does not fail because this cannot be read.
    with contextlib.suppress(BurnishError):
        channel = recipe.announce.channel
        report.warn(*(each.sentence for each in owed(store, recipe.name, channel)))
    report.end(outcome, sentence)
    tag_outcome(context.run_id, outcome)
    return Completed(name=outcome, message=f"{outcome}. {sentence}", data=report.text())


def fail(error: BurnishError, recipe: Recipe, context: RunContext, report: RunReport) -> State:
    """End a run that failed for a known cause."""
    return fail_visibly(error, _visible(recipe, context), report)


def fail_visibly(error: BurnishError, visible: str, report: RunReport) -> State:
    """As `fail`, if what consumers see now is known."""
    explain(error.title, report)
    report.fail(error, visible)
    return _failed(error, visible)


def explain(heading: str, report: RunReport) -> None:
    """Show the runbook's section, if it has one."""
    if section := runbook().get(heading):
        report.section(Section.RUNBOOK, f"*{heading}* in {FILE}:\n\n{section}")


def _failed(error: BurnishError, visible: str) -> State:
    tag_outcome(this_run.id or "", error.cause)
    return Failed(name=error.title, message=f"{error.title}. {error}. {visible}")


def tag_outcome(run_id: str, outcome: str = "") -> None:
    """Tag a run with its outcome or cause, such as `up-to-date` or `bad-data`.

    Lists can be filtered by tags in both of Prefect's UIs; the older one does not know the names of
    our states. The tag of an earlier try is replaced.
    """
    with contextlib.suppress(Exception), brief_client(seconds=5) as client:
        had = client.read_flow_run(UUID(run_id)).tags
        tags = [tag for tag in had if tag not in OUTCOME_TAGS]
        tags += [_tag(outcome)] if outcome else []
        if tags != had:
            client.update_flow_run(UUID(run_id), tags=tags)


def _tag(outcome: str) -> str:
    return outcome.lower().replace(" ", "-")


def _known_causes(kind: type[BurnishError] = BurnishError) -> Iterator[str]:
    yield kind.cause
    for special in kind.__subclasses__():
        yield from _known_causes(special)


OUTCOMES = ("Released", "Up to date", "Rejected", "Held", "Superseded", "Cancelled", "Crashed")
ROLLED_BACK = "Rolled back"
LOOKS = ("Nothing new", "Waiting", "Retraining")
OUTCOME_TAGS = {
    _tag(outcome) for outcome in (*OUTCOMES, WAITING, ROLLED_BACK, *LOOKS, *_known_causes())
}


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
        tag_outcome(context.run_id, "Cancelled")
        return Cancelled(message=" ".join(filter(None, [sentence, visible, kept])))
    signal = "SIGTERM" if isinstance(request, TerminationSignal) else "SIGINT, as by Ctrl-C"
    sentence = (
        f"The run was asked to stop ({signal}), such as by an eviction or a shutdown of its worker."
    )
    report.stop("Crashed", Preempted.cause, sentence, visible, kept)
    tag_outcome(context.run_id, Preempted.cause)
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

    def visible(origin: Origin | None) -> str:
        if origin is None:
            return NOT_BEGUN
        return visible_now(
            open_store(origin.store),
            origin.model,
            origin.channel,
            flow_run.name,
            flow_run.start_time,
        )

    _close(
        flow_run,
        recipe_name(str(flow_run.parameters.get("recipe", "retrain"))),
        state,
        visible,
        "press Retry on the run's page, or run "
        f"`prefect flow-run retry {flow_run.id}`. {FINISHED_STEPS}",
    )


def close_report_of_pool_run(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Complete the report of a pool's run that could not do so itself, since its process was
    killed."""
    asked_by = flow_run.parameters["run_id"]
    _close(
        flow_run,
        "steps",
        state,
        lambda _: PUBLISHES_NOTHING,
        "if the run that asked for it still waits, it starts another one. Otherwise "
        f"run `prefect flow-run retry {asked_by}`. {FINISHED_STEPS}",
    )


def _close(
    flow_run: FlowRun,
    name: str,
    state: State,
    visible: Callable[[Origin | None], str],
    next_action: str,
) -> None:
    outcome = "Cancelled" if state.is_cancelling() else state.name or "Ended"
    section = runbook().get(outcome, "")

    def explain(origin: Origin | None) -> str:
        return (
            f"- **Cause:** {state.message or 'the process ended without a message'}\n"
            f"- **Visible to consumers:** {visible(origin)}\n"
            f"- **Next:** {next_action}" + (f"\n\n## Runbook\n\n{section}" if section else "")
        )

    close_report(flow_run.id, name, outcome, explain)
    if not OUTCOME_TAGS.intersection(flow_run.tags):
        tag_outcome(str(flow_run.id), outcome)


def _visible(recipe: Recipe, context: RunContext) -> str:
    run = FlowRunContext.get()
    return visible_now(
        open_store(context.store),
        recipe.name,
        recipe.announce.channel,
        context.run_name,
        run.flow_run.start_time or run.start_time if run and run.flow_run else None,
    )
