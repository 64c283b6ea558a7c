"""Watch: look whether a recipe's data have changed, and start one retraining if they have.

It is deployed beside each recipe whose `watch.every_minutes` is not 0. It looks at what is there
now, so it does not matter how often it is woken, or whether a look was missed. A look ends *Nothing
new*, *Waiting*, *Retraining* or *Held*: a person must accept the data. The first look that holds
them back ends *Failed*, so that somebody hears of it once.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment as this_deployment
from prefect.runtime import flow_run as this_run
from prefect.states import Completed, Failed, Scheduled, State
from prefect.utilities.names import generate_slug

from flows import endings, stage_inputs
from flows.recipe_files import read_recipe
from tasks.contracts.artifacts import Source
from tasks.contracts.errors import (
    BurnishError,
    HubFailed,
    NoAccess,
    NotFound,
    StorageFailed,
    retry_helps,
)
from tasks.contracts.recipe import Recipe
from tasks.load.step import load
from tasks.release import deployment_log
from tasks.release.holds import freeze_of, freeze_sentence
from tasks.release.provenance import data_report, provenance_if_whole
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.prefect_api import brief_client
from tasks.runtime.run_beat import beating
from tasks.storage.sources import resolve
from tasks.storage.store import Store, default_store, open_store
from tasks.watch import records
from tasks.watch.card import next_action, show_card
from tasks.watch.decide import (
    Attempt,
    Decision,
    after_look,
    after_unreachable,
    decide,
    decide_on_rows,
    hold,
)
from tasks.watch.records import DataVerdict, Seen, WatchState, seen

MISSING = "missing"
SOON_SECONDS = 20.0
LOOKS = 5
"""In one run, at most: what changes all the time is looked at again by the next run."""


@flow(name="watch", flow_run_name=endings.run_name, validate_parameters=True)
def watch(recipe: str) -> State:
    """Look at a recipe's data, and retrain if they are new and have settled.

    Args:
        recipe: A shipped recipe's name, a file, or s3://bucket/recipe.yaml.
    """
    try:
        checked = read_recipe(recipe).resolved()
        store = open_store(checked.store or default_store())
        context = RunContext(
            store=store.uri, run_id=this_run.id or "", run_name=this_run.name or ""
        )
        before = records.read_state(store, checked.name)
        with beating(store, context.run_id):
            for _ in range(LOOKS):
                decision = _look(checked, store, context)
                records.write_state(store, checked.name, decision.state)
                if seconds := _seconds_to_wait(decision):
                    time.sleep(seconds)
                    continue
                # Whatever woke the watch meanwhile was dropped: one run of it at a time.
                if _digest_now(checked) in (decision.state.digest, None):
                    break
        _look_again(decision)
        decision = _show(checked, store, decision)
        return _ended(checked, before, decision)
    except BurnishError as error:
        return endings.refuse(error, recipe)


def _look(recipe: Recipe, store: Store, context: RunContext) -> Decision:
    """One look at the data: what was found, and what is to be remembered."""
    now = datetime.now(UTC)
    state = records.read_state(store, recipe.name)
    settings, name = recipe.watch, recipe.name
    try:
        source = resolve(recipe.data.uri, "data")
    except NotFound as error:
        state = after_look(state, MISSING, None, now)
        return hold(state, str(error), acceptable=False)
    except (NoAccess, HubFailed, StorageFailed) as error:
        return after_unreachable(state, str(error), settings, now)
    verdict = records.last_verdict(store, name) or _deployed_data(recipe, store)
    accepted = records.accepted(store, name)
    state = after_look(state, source.digest, verdict, now)
    decision = decide(state, verdict, accepted, _attempt(state), settings, now)
    if decision.outcome != "Ready":
        return decision
    if freeze := freeze_of(store, name, recipe.announce.channel):
        sentence = freeze_sentence(name, recipe.announce.channel, freeze)
        return Decision(outcome="Waiting", sentence=sentence, state=decision.state)
    try:
        data = _read(recipe, source, context)
    except (NoAccess, HubFailed, StorageFailed) as error:
        return after_unreachable(state, str(error), settings, now)
    except BurnishError as error:
        return hold(decision.state, str(error), acceptable=False)
    known = verdict.data if verdict else None
    decision = decide_on_rows(decision.state, data, known, accepted, settings, now)
    return _start(recipe, store, decision) if decision.outcome == "Ready" else decision


def _deployed_data(recipe: Recipe, store: Store) -> DataVerdict | None:
    """The data of the deployed release, for a watch that has seen no verdict yet."""
    entry = deployment_log.deployed(store, recipe.name, recipe.announce.channel)
    provenance = provenance_if_whole(entry.release, store) if entry else None
    if entry is None or provenance is None:
        return None
    return DataVerdict(
        data=seen(provenance["sources"]["data"]["digest"], provenance["data_report"]),
        outcome="Released",
        run=entry.run,
        run_id="",
        at=entry.at,
    )


def _read(recipe: Recipe, source: Source, context: RunContext) -> Seen:
    """Read the data as a retraining would, which then reuses the result."""
    loaded = load(stage_inputs.load_inputs(recipe, source), context)
    return seen(source.digest, data_report(loaded, open_store(context.store)))


def _attempt(state: WatchState) -> Attempt:
    """How the last retraining that the watch started fared."""
    if not state.run_id:
        return "none"
    try:
        with brief_client() as client:
            run_state = client.read_flow_run(state.run_id).state
    except ObjectNotFound:
        return "may pass"
    if run_state is None or not run_state.is_final():
        return "under way"
    if run_state.is_completed():
        # It reached no verdict on these data: it was superseded, or trained on newer ones.
        return "none"
    if run_state.is_cancelled():
        return "cancelled"
    passes = run_state.is_crashed() or retry_helps(run_state.name or "")
    return "may pass" if passes else "failed"


def _start(recipe: Recipe, store: Store, decision: Decision) -> Decision:
    """Start a retraining; if this was cut short before, join the one that was started."""
    # Written before: should this be cut short, the next look makes the same key.
    records.write_state(store, recipe.name, decision.state)
    state = decision.state.model_copy(update={"attempts": decision.state.attempts + 1})
    key = f"{state.digest}/{state.changed_at}/{state.attempts}"
    run: FlowRun = run_deployment(
        f"retrain/{recipe.name}",
        flow_run_name=f"{recipe.name}-{generate_slug(2)}",
        idempotency_key=key,
        timeout=0,
        as_subflow=False,
    )
    state = state.model_copy(update={"run_id": str(run.id), "run_name": run.name})
    sentence = f"{decision.sentence} Run {run.name} was started."
    return Decision(outcome="Retraining", sentence=sentence, state=state)


def _digest_now(recipe: Recipe) -> str | None:
    """The data's digest; None if it cannot be told."""
    try:
        return resolve(recipe.data.uri, "data").digest
    except NotFound:
        return MISSING
    except BurnishError:
        return None


def _seconds_to_wait(decision: Decision) -> float:
    """How long this run waits before it looks again; 0 if another run is to look. One that is due
    so soon would be dropped, since this one has not ended by then."""
    if decision.look_again is None:
        return 0.0
    seconds = (decision.look_again - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.1) if seconds < SOON_SECONDS else 0.0


def _look_again(decision: Decision) -> None:
    """Have the watch look when the quiet period is over, if no look of the schedule is due then."""
    if decision.look_again is None or not this_deployment.id:
        return
    with brief_client() as client:
        client.create_flow_run_from_deployment(
            this_deployment.id,
            state=Scheduled(scheduled_time=decision.look_again),
            idempotency_key=f"look/{decision.look_again.isoformat(timespec='seconds')}",
        )


def _show(recipe: Recipe, store: Store, decision: Decision) -> Decision:
    """Show the data's owner what was found, and remember it."""
    run_logger().info("%s: %s", decision.outcome, decision.sentence)
    changes = {"outcome": decision.outcome, "sentence": decision.sentence}
    if decision.outcome != decision.state.outcome:
        changes["artifact"] = ""  # A new version of it, on this run's own page.
    state = decision.state.model_copy(update=changes)
    card = show_card(recipe.name, state, recipe.watch, decision.look_again)
    state = state.model_copy(update={"artifact": card})
    records.write_state(store, recipe.name, state)
    return decision.model_copy(update={"state": state})


def _ended(recipe: Recipe, before: WatchState, decision: Decision) -> State:
    endings.tag_outcome(this_run.id or "", decision.outcome)
    message = f"{decision.outcome}. {decision.sentence}"
    if decision.outcome != "Held":
        return Completed(name=decision.outcome, message=message)
    message += f" {next_action(recipe.name, decision.state)}"
    told = before.held == decision.state.held and before.digest == decision.state.digest
    return (Completed if told else Failed)(name=decision.outcome, message=message)
