"""Rollback, as a form in the Prefect UI; `burnish rollback` does the same."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from prefect.runtime import deployment
from prefect.runtime import flow_run as this_run
from prefect.states import Completed, State
from pydantic import Field

from flows import endings
from flows.deployments import store_of
from tasks.contracts.errors import describe
from tasks.release.rollback import roll_back
from tasks.release.visibility import visible_now
from tasks.report.markdown import release_facts
from tasks.report.run_report import Origin, RunReport
from tasks.runtime.context import RunContext
from tasks.storage.store import open_store

Said = Annotated[str, Field(min_length=1)]


def run_name() -> str:
    """The run's name, which no other rollback has: the log names it."""
    return f"{this_run.parameters['model']}-rollback-{(this_run.id or '')[-8:]}"


@flow(
    name="rollback",
    flow_run_name=run_name,
    validate_parameters=True,
    on_cancellation=[endings.close_report_of_ended_run],
    on_crashed=[endings.close_report_of_ended_run],
)
def rollback(
    model: Said, reason: Said, by: Said, to: str = "", channel: str = "production"
) -> State:
    """Deploy an earlier release again, and quarantine the one that is left.

    Args:
        model: A recipe's name.
        reason: Why. It is kept in the log.
        by: Who you are. It is kept in the log as you state it.
        to: The version to return to. Empty is the one before.
        channel: The channel.
    """
    store = store_of(model)
    context = RunContext(store=store, run_id=this_run.id or "", run_name=this_run.name or "")
    report = RunReport(
        f"{model}-rollback",
        this_run.id or "",
        deployment.id is not None,
        origin=Origin(store, model, channel),
    )
    report.add_fact("reason", f"{reason} ({by})")
    report.status("Rolling back.")
    try:
        entry = roll_back(model, channel, to, by, reason, context)
    except Exception as error:
        visible = visible_now(open_store(store), model, channel, context.run_name, None)
        return endings.fail_visibly(describe(error), visible, report)
    for name, value in release_facts(entry):
        report.add_fact(name, value)
    left = entry.event.data.previous if entry.event else ""
    sentence = (
        f"Version {entry.release.version} is deployed on {channel} again. Version {left} is "
        f"quarantined until `burnish lift {model} {left} --reason WHY`."
    )
    outcome = endings.ROLLED_BACK
    report.end(outcome, sentence)
    endings.tag_outcome(context.run_id, outcome)
    return Completed(name=outcome, message=f"{outcome}. {sentence}", data=report.text())
