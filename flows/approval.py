"""Ask a person before a release: the run is suspended meanwhile, and holds no worker.

A run that is resumed starts anew, finds what it had proposed, and releases exactly that.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from prefect.states import State
from prefect.utilities.urls import url_for
from pydantic import Field

from flows.endings import explain, tag_outcome
from tasks.contracts.approval import Answer
from tasks.contracts.errors import BadRecipe, BadRequest, NotFound
from tasks.contracts.recipe import Recipe
from tasks.release import deployment_log
from tasks.release.approval import (
    Proposal,
    delete_proposal,
    make_proposal,
    proposals,
    read_proposal,
    write_proposal,
)
from tasks.release.inputs import ReleaseInputs
from tasks.report.run_report import WAITING, RunReport
from tasks.runtime.context import RunContext
from tasks.runtime.prefect_api import brief_client
from tasks.storage.store import Store, open_store
from tasks.tend.alarms import alarm_approval

LONGEST_WAIT_SECONDS = 30 * 86_400
"""Prefect's server fails a run that is suspended for longer. `tend` answers before, at the recipe's
deadline."""
NOBODY = "nobody"
"""Who answers if no person does."""


class Approval(RunInput):
    """The form of the Prefect UI. Nothing has a default, so that nobody approves by pressing
    Enter."""

    decision: Literal["approve", "reject"] = Field(title="Decision")
    by: Annotated[str, Field(min_length=1, title="Your name", description="As you state it here.")]
    reason: Annotated[str, Field(min_length=1, title="Reason")]


def check_can_wait(recipe: Recipe) -> None:
    """Refuse a run that nobody could resume.

    Raises:
        BadRecipe: No deployment started it.
    """
    if recipe.gate.approval == "person" and deployment.id is None:
        raise BadRecipe(
            "gate.approval",
            "person, in a run that no deployment has started, which cannot wait for one",
            "a run of a deployment",
            f"run `burnish deploy` on this recipe, and start {recipe.name} in the Prefect UI",
        )


def earlier_proposal(context: RunContext) -> Proposal | None:
    """What this run proposed before it was suspended; None if it did not, or if the log has moved
    since."""
    store = open_store(context.store)
    found = read_proposal(store, context.run_id) if deployment.id else None
    if found is None or found.superseded_by:
        return found
    newest = deployment_log.head(store, found.inputs.name, found.inputs.channel)
    if (newest.number if newest else 0) == found.inputs.log_number:
        return found
    delete_proposal(store, context.run_id)
    return None


def waits_elsewhere(recipe: Recipe, inputs: ReleaseInputs, context: RunContext) -> str:
    """The name of another run that waits for approval of the same candidate; empty without one."""
    store = open_store(context.store)
    mine = make_proposal(store, inputs, context.run_id, context.run_name, 0)
    with contextlib.suppress(Exception):  # If the server cannot be asked, this run asks, too.
        for other in _others(store, recipe, context):
            if other.key == mine.key and not other.superseded_by and is_suspended(other):
                return other.run_name
    return ""


def ask(
    recipe: Recipe,
    inputs: ReleaseInputs,
    context: RunContext,
    report: RunReport,
    before: Proposal | None = None,
) -> Answer:
    """Ask a person, which ends this process; the next one gets the answer.

    Args:
        recipe: The recipe.
        inputs: What is to be released.
        context, report: Of the run.
        before: What this run has proposed already.

    Returns:
        The answer.

    Raises:
        prefect.exceptions.Pause: The run is suspended.
    """
    store = open_store(context.store)
    proposal = before or make_proposal(
        store, inputs, context.run_id, context.run_name, recipe.gate.approval_hours
    )
    if before is None:
        write_proposal(store, proposal)
        for other in _others(store, recipe, context):
            # In one order for all, or two that ask at once would end each other.
            if (other.asked_at, other.run_id) < (proposal.asked_at, proposal.run_id):
                _supersede(store, other, context)
    sentence = waiting_sentence(proposal)
    explain(WAITING, report)
    report.end(WAITING, sentence)
    tag_outcome(context.run_id, WAITING)
    channel, run = recipe.announce.channel, (context.run_id, context.run_name)
    alarm_approval(store, recipe.name, channel, sentence, pause_key(proposal), run)
    form = Approval.with_initial_data(
        description=f"{sentence}\n\nThe verdict: {inputs.candidate.gate_result.verdict.summary} "
        "The report is on the run's page, under Artifacts."
    )
    given = suspend_flow_run(
        wait_for_input=form, timeout=LONGEST_WAIT_SECONDS, key=pause_key(proposal)
    )
    return Answer(decision=given.decision, by=given.by, reason=given.reason)


def pause_key(proposal: Proposal) -> str:
    """What Prefect knows the question by. Asked again, after the log has moved, it is another."""
    return f"approval-{proposal.run_id}-{proposal.key[:16]}"


def waiting_sentence(proposal: Proposal) -> str:
    """What waits, until when, and how to answer."""
    name, link = proposal.run_name, url_for("flow-run", obj_id=proposal.run_id)
    page = f"[this run's page]({link})" if link else "this run's page"
    return (
        f"Version {proposal.version} of {proposal.inputs.name} passed the gate and waits for a "
        f"person until {proposal.deadline}. Open {page}, choose ⋮ and Resume, and fill in the "
        f"form; or run `burnish approve {name} --reason WHY` or "
        f"`burnish reject {name} --reason WHY`. Until then nothing of it is published."
    )


def _others(store: Store, recipe: Recipe, context: RunContext) -> list[Proposal]:
    """The proposals of other runs for the same model and channel."""
    return [
        each
        for each in proposals(store)
        if (each.inputs.name, each.inputs.channel) == (recipe.name, recipe.announce.channel)
        and each.run_id != context.run_id
    ]


def _supersede(store: Store, older: Proposal, context: RunContext) -> None:
    """Let a run with an older candidate end, rather than wait on."""
    # First: the older run looks there when it is resumed, or if a person resumes it now.
    write_proposal(store, older.model_copy(update={"superseded_by": context.run_name}))
    with contextlib.suppress(Exception), brief_client() as client:  # `tend` does it, too.
        if is_suspended(older):
            resume(client, older.run_id, superseding(context.run_name))


def superseding(run: str) -> Answer:
    """The answer for a candidate that is not the newest any more."""
    reason = f"run {run} has a newer candidate"
    return Answer(decision="reject", by=NOBODY, reason=reason)


def resume(client: SyncPrefectClient, run_id: str, answer: Answer) -> None:
    """Resume a run that waits, with an answer.

    Raises:
        BadRequest: It does not wait any more, or the server refuses the answer.
    """
    given = client.resume_flow_run(UUID(run_id), run_input=answer.model_dump())
    if given.status.value != "ACCEPT":
        raise BadRequest(
            f"run {run_id}",
            f"the server's refusal: {getattr(given.details, 'reason', '')}",
            "a run that waits for approval",
            "see the run's page: somebody may have answered",
        )


def waiting_run(client: SyncPrefectClient, name: str) -> str:
    """The id of a run that waits, by its name or id.

    Raises:
        NotFound: No such run waits.
    """
    state = {"type": {"any_": ["PAUSED"]}}
    waiting = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state))
    for run in waiting:
        if name in (run.name, str(run.id)):
            return str(run.id)
    raise NotFound(
        f"run {name}",
        f"{', '.join(run.name for run in waiting)}" if waiting else "no run that waits",
        "a run that waits for approval",
        "name one that waits" if waiting else "see the run's page: it may have been answered",
    )


def is_suspended(proposal: Proposal) -> bool:
    """Whether the run of a proposal waits for an answer."""
    state = state_of(proposal.run_id)
    return state is not None and state.is_paused()


def state_of(run_id: str) -> State | None:
    """The state of a run; None if the server does not know it."""
    with brief_client() as client:
        try:
            return client.read_flow_run(UUID(run_id)).state
        except ObjectNotFound:
            return None
