"""Tend: look every few minutes after what nobody else would notice.

It marks runs whose machine is gone, delivers what is owed, answers approvals that are past their
deadline, and calls a person where one is needed. Nothing depends on it: what it misses, it does the
next time. If it is not heard of for an hour, an automation says so (infra/automations.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events import Event
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Completed, Crashed, Failed, State

from flows import approval, endings
from flows.deployments import HEARTBEAT_VARIABLE, STORE_VARIABLE, environment_of
from flows.recipe_files import read_recipe
from flows.retrain import retrain
from flows.steps import steps
from tasks.contracts.approval import Answer
from tasks.contracts.errors import BadRequest, BurnishError, retry_helps
from tasks.release import deployment_log
from tasks.release.approval import delete_proposal, proposals
from tasks.release.delivery import deliver_owed, owed
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.prefect_api import brief_client, post_event
from tasks.runtime.run_beat import beat_path
from tasks.storage.store import Store, default_store, open_store
from tasks.tend.alarms import TEND_DONE, alarm_approval, alarm_failures, alarm_owed
from tasks.tend.lost_runs import Watched, lost_runs
from tasks.watch.records import read_state

FLOWS = ("retrain", "steps", "watch", "rollback", "tend")
ALARMING = ("retrain", "watch")
PREFECT_HEARTBEAT_SECONDS = 180.0
"""Of a deployment that says nothing else."""
_DAY = timedelta(days=1)


class Known(NamedTuple):
    """What the Prefect server has.

    Attributes:
        deployments: By id.
        stores: Those that the deployments name, by URI.
    """

    deployments: dict[UUID, DeploymentResponse]
    stores: dict[str, Store]

    def store_of(self, run: FlowRun) -> Store:
        """Where a run keeps what it does."""
        if uri := run.parameters.get("store"):
            return open_store(uri)
        made = self.deployments.get(run.deployment_id)
        return open_store(environment_of(made).get(STORE_VARIABLE) or default_store())


@flow(name="tend", flow_run_name="tend", validate_parameters=True)
def tend() -> State:
    """Look after runs, deliveries and approvals, and call a person where one is needed."""
    context = RunContext(
        store=default_store(), run_id=this_run.id or "", run_name=this_run.name or ""
    )
    done, failed = [], []
    with brief_client() as client:
        known = what_is_known(client)
        for duty, arguments in _duties(client, known, context):
            try:
                for sentence in duty(*arguments):
                    run_logger().info(sentence)
                    done.append(sentence)
            except Exception as error:  # One duty that fails must not keep the others from theirs.
                run_logger().exception("%s", duty.__name__)
                failed.append(f"{duty.__name__}: {type(error).__name__}: {error}")
        if failed:
            endings.tag_outcome(context.run_id, "Failed")
            return Failed(message=f"Not everything could be done. {' '.join(failed)}")
        resource = {"prefect.resource.id": "burnish.tend", "prefect.resource.name": "tend"}
        post_event(client, Event(event=TEND_DONE, resource=resource, payload={"done": done}))
    return Completed(message=" ".join(done) or "Nothing was to be done.")


def _duties(
    client: SyncPrefectClient, known: Known, context: RunContext
) -> Iterator[tuple[Callable[..., Iterator[str]], tuple]]:
    yield mark_lost_runs, (client, known, context)
    for store in known.stores.values():
        yield deliver, (store, context)
        yield answer_late_approvals, (client, store)
        yield forget_old_proposals, (client, store)
    yield alarm_about_failures, (client, known)


def what_is_known(client: SyncPrefectClient) -> Known:
    """The deployments of our flows, and their stores."""
    ours = FlowFilter(name={"any_": list(FLOWS)})
    found, offset = [], 0
    while page := client.read_deployments(flow_filter=ours, offset=offset):
        found += page
        offset += len(page)
    uris = {environment_of(each).get(STORE_VARIABLE) for each in found}
    stores = {uri: open_store(uri) for uri in sorted(filter(None, uris))}
    return Known({each.id: each for each in found}, stores)


def mark_lost_runs(client: SyncPrefectClient, known: Known, context: RunContext) -> Iterator[str]:
    """Mark runs as crashed whose worker or machine is gone."""
    running = client.read_flow_runs(
        flow_filter=FlowFilter(name={"any_": list(FLOWS)}),
        flow_run_filter=FlowRunFilter(state={"type": {"any_": ["RUNNING", "CANCELLING"]}}),
    )
    watched = []
    for run in running:
        # A command's run has no worker, and sends no heartbeats.
        made = known.deployments.get(run.deployment_id)
        if made is None or str(run.id) == context.run_id:
            continue
        environment = environment_of(made)
        seconds = float(environment.get(HEARTBEAT_VARIABLE) or PREFECT_HEARTBEAT_SECONDS)
        watched.append(Watched(run, known.store_of(run), seconds))
    for run in lost_runs(client, watched):
        yield mark_lost(client, run, known.store_of(run))


def mark_lost(client: SyncPrefectClient, run: FlowRun, store: Store) -> str:
    """End a run that nobody runs any more; returns a sentence on it."""
    sentence = "Neither the server nor the store has heard of it: its worker or machine is gone."
    cancelling = run.state is not None and run.state.is_cancelling()
    state = (Cancelled if cancelling else Crashed)(message=sentence)
    client.set_flow_run_state(run.id, state, force=True)
    with contextlib.suppress(Exception):  # Its report is no reason to leave it running.
        flow_name = client.read_flow(run.flow_id).name
        if flow_name == steps.name:
            endings.close_report_of_pool_run(steps, run, state)
        elif flow_name in (retrain.name, "rollback"):
            endings.close_report_of_ended_run(retrain, run, state)
    with contextlib.suppress(BurnishError):
        store.objects.delete(beat_path(str(run.id)))
    return f"Run {run.name} is marked as {state.name}: {sentence}"


def deliver(store: Store, context: RunContext) -> Iterator[str]:
    """Deliver the events that somebody has not heard of; call a person if that lasts."""
    for name, channel in deployment_log.all_logs(store):
        here = context.model_copy(update={"store": store.uri})
        for entry in deliver_owed(name, channel, here):
            yield f"The event of version {entry.release.version} of {name} is delivered."
        for each in owed(store, name, channel):
            alarm_owed(store, name, channel, each)


def answer_late_approvals(client: SyncPrefectClient, store: Store) -> Iterator[str]:
    """Reject what nobody has approved in time, so that its run ends."""
    for proposal in proposals(store):
        name, channel = proposal.inputs.name, proposal.inputs.channel
        if not approval.is_suspended(proposal):
            continue
        sentence = approval.waiting_sentence(proposal)
        run = (proposal.run_id, proposal.run_name)
        alarm_approval(store, name, channel, sentence, approval.pause_key(proposal), run)
        if proposal.superseded_by:
            answer = approval.superseding(proposal.superseded_by)
        elif proposal.is_late:
            reason = f"no answer until {proposal.deadline}"
            answer = Answer(decision="reject", by=approval.NOBODY, reason=reason)
        else:
            continue
        with contextlib.suppress(BadRequest):  # A person was quicker.
            approval.resume(client, proposal.run_id, answer)
            yield f"Run {proposal.run_name} goes on: {answer.reason}."


def forget_old_proposals(client: SyncPrefectClient, store: Store) -> Iterator[str]:
    """Forget what runs proposed that have ended without an answer, as by a cancellation."""
    for proposal in proposals(store):
        state = approval.state_of(proposal.run_id)
        if state is None or state.is_final():
            delete_proposal(store, proposal.run_id)
            with contextlib.suppress(Exception):  # Its report is no reason to keep it.
                run = client.read_flow_run(UUID(proposal.run_id))
                endings.close_report_of_ended_run(retrain, run, state)
            yield f"Run {proposal.run_name} does not wait for approval any more."


def alarm_about_failures(client: SyncPrefectClient, known: Known) -> Iterator[str]:
    """Call a person about runs that have failed and that nothing tries again: once a day for each
    recipe and cause."""
    since = datetime.now(UTC) - _DAY
    groups: dict[tuple[str, str], list[FlowRun]] = {}
    for name in ALARMING:
        found = client.read_flow_runs(
            flow_filter=FlowFilter(name={"any_": [name]}),
            flow_run_filter=FlowRunFilter(
                state={"type": {"any_": ["FAILED", "CRASHED"]}}, end_time={"after_": since}
            ),
        )
        for run in sorted(found, key=lambda run: run.end_time or since):
            made = known.deployments.get(run.deployment_id)
            cause = run.state.name or "Failed"
            if made and not _is_tried_again(run, made.name, known.store_of(run)):
                groups.setdefault((made.name, cause), []).append(run)
    for (recipe, cause), runs in groups.items():
        named = [(str(run.id), run.name) for run in runs]
        if alarm_failures(known.store_of(runs[-1]), recipe, cause, named):
            yield f"A person is called: {recipe}, {cause}."


def _is_tried_again(run: FlowRun, recipe: str, store: Store) -> bool:
    """Whether the watch of new data starts another run for one that failed."""
    try:
        state = read_state(store, recipe)
        settings = read_recipe(str(run.parameters.get("recipe"))).watch
    except BurnishError:
        return False
    passes = run.state.is_crashed() or retry_helps(run.state.name or "")
    return state.run_id == str(run.id) and passes and state.attempts < settings.attempts
