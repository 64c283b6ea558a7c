"""Alarms: events that say that a person is needed, or that something is worth knowing.

Each has an id of its own reason, so that it is sent once, however often somebody looks. Automations
bring them to people (infra/automations.py).
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

from prefect.events import Event
from prefect.utilities.urls import url_for

from tasks.contracts.release import EVENT_NAMESPACE, Hold
from tasks.release.delivery import Owed, model_resource, run_resources, send_once
from tasks.storage.store import Store

RUN_FAILED = "burnish.run.failed"
DELIVERY_OWED = "burnish.delivery.owed"
APPROVAL_WAITING = "burnish.approval.waiting"
HELD = "burnish.model.held"
TEND_DONE = "burnish.tend.done"
OWED_TOO_LONG = timedelta(hours=1)


def alarm_failures(store: Store, recipe: str, cause: str, runs: list[tuple[str, str]]) -> bool:
    """Say that runs of a recipe have failed for the same cause: once a day; returns whether it was
    said now.

    Args:
        store: Where what was sent is remembered.
        recipe: Its name.
        cause: The name of the runs' last state.
        runs: Ids and names of those that failed within a day, the newest last.
    """
    today = datetime.now(UTC).date().isoformat()
    run_id, run_name = runs[-1]
    times = f"{len(runs)} times within a day" if len(runs) > 1 else "once"
    return _send(
        store,
        RUN_FAILED,
        f"{recipe}/{cause}/{today}",
        {"prefect.resource.id": f"burnish.recipe.{recipe}", "prefect.resource.name": recipe},
        f"{recipe}: {cause}, {times}. The page of run {run_name} says what to do.",
        (run_id, run_name),
        recipe=recipe,
        cause=cause,
        count=len(runs),
    )


def alarm_owed(store: Store, name: str, channel: str, owed: Owed) -> None:
    """Say that a deployment's event has been owed for more than an hour: once."""
    deployed_at = datetime.fromisoformat(owed.entry.at)
    if datetime.now(UTC) - deployed_at < OWED_TOO_LONG:
        return
    message = f"{name} on {channel}, deployed at {owed.entry.at}. {owed.sentence}"
    resource = model_resource(name, channel)
    _send(store, DELIVERY_OWED, owed.entry.event.id, resource, message, ("", owed.entry.run))


def alarm_approval(
    store: Store, name: str, channel: str, message: str, key: str, run: tuple[str, str]
) -> None:
    """Say that a release waits for a person: once for each candidate."""
    _send(store, APPROVAL_WAITING, key, model_resource(name, channel), message, run)


def inform_held(
    store: Store, name: str, channel: str, held: Hold, message: str, run: tuple[str, str]
) -> None:
    """Say that a run was held: once for each hold, which every night's run meets."""
    key = f"{name}/{channel}/{held.at}/{held.by}"
    _send(store, HELD, key, model_resource(name, channel), message, run)


def _send(
    store: Store,
    event: str,
    key: str,
    resource: dict[str, str],
    message: str,
    run: tuple[str, str],
    **payload: str | int,
) -> bool:
    return send_once(
        store,
        Event(
            id=uuid.uuid5(EVENT_NAMESPACE, f"{event}/{key}"),
            event=event,
            resource=resource,
            related=run_resources(*run),
            payload={"message": message, "run": run[1], "page": _page(run[0]), **payload},
        ),
    )


def _page(run_id: str) -> str:
    return (url_for("flow-run", obj_id=run_id) or "") if run_id else ""
