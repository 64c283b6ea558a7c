"""Deliver deployment events to Prefect, and mark an event as delivered once Prefect confirmed it.

A marker in the store says which events Prefect has. It is written after the server's confirmation,
so that an event is never lost; one that is delivered twice has the same id. Events are delivered in
the order of the log, so those that are owed are always the newest ones.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from prefect.events import Event

from tasks.contracts.release import EVENT_NAMESPACE, DeploymentEvent, Hold, LogEntry
from tasks.release import deployment_log
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.prefect_api import brief_client, post_event
from tasks.storage.store import Store, open_store

# Prefect's server drops subscribers at 1 MiB; payloads stay far below.
MAX_PAYLOAD_BYTES = 64 * 1024


def deliver_owed(name: str, channel: str, context: RunContext) -> list[LogEntry]:
    """Deliver the events of a log that Prefect does not have, the oldest first.

    A delivery that fails is only logged: the release is deployed, and the next run tries again.

    Returns:
        The entries whose events were delivered now.
    """
    store = open_store(context.store)
    delivered = []
    for entry in owed(store, name, channel):
        try:
            send(entry, context)
        except Exception as error:  # Whatever it is, it must not fail a run that has released.
            run_logger().warning(
                "The event of version %s could not be delivered (%s: %s). It is owed: the next run "
                "of this model delivers it.",
                entry.release.version,
                type(error).__name__,
                error,
            )
            break
        store.objects.write(_marker(entry.event.id), deployment_log.utc_now().encode())
        delivered.append(entry)
    return delivered


def inform_once(held: Hold, sentence: str, name: str, channel: str, context: RunContext) -> None:
    """Send an event that a run was held, once for each hold: every night's run meets it."""
    store = open_store(context.store)
    identity = str(uuid.uuid5(EVENT_NAMESPACE, f"held/{name}/{channel}/{held.at}/{held.by}"))
    event = Event(
        id=identity,
        event="burnish.model.held",
        resource=_resource(name, channel),
        related=_run_of(context),
        payload={"message": sentence, "by": held.by, "reason": held.reason, "since": held.at},
    )
    # The run's page says it, too: it does not fail because nobody can be told.
    with contextlib.suppress(Exception):
        if was_delivered(store, identity):
            return
        with brief_client() as client:
            post_event(client, event)
        store.objects.write(_marker(identity), deployment_log.utc_now().encode())


def _resource(name: str, channel: str) -> dict[str, str]:
    return {
        "prefect.resource.id": f"burnish.model.{name}.{channel}",
        "prefect.resource.name": name,
    }


def _run_of(context: RunContext) -> list[dict[str, str]]:
    if not context.run_id:
        return []
    return [
        {
            "prefect.resource.id": f"prefect.flow-run.{context.run_id}",
            "prefect.resource.role": "flow-run",
            "prefect.resource.name": context.run_name,
        }
    ]


def owed(store: Store, name: str, channel: str) -> list[LogEntry]:
    """The deployments after the last one whose event was delivered, in order."""
    found = []
    for entry in deployment_log.newest_first(store, name, channel):
        if entry.kind != "deployed":
            continue
        if was_delivered(store, entry.event.id):
            break
        found.append(entry)
    return found[::-1]


def was_delivered(store: Store, event_id: str) -> bool:
    """Whether Prefect confirmed an event."""
    return store.objects.read(_marker(event_id)) is not None


def _marker(event_id: str) -> str:
    return f"deliveries/{event_id}/prefect"


def send(entry: LogEntry, context: RunContext) -> None:
    """Post an entry's event to Prefect's server, and wait for its confirmation.

    Raises:
        Exception: The server cannot be reached, or refuses the event.
    """
    release = entry.release
    event = Event(
        id=entry.event.id,
        event=entry.event.type,
        resource={
            **_resource(release.name, release.channel),
            "burnish.version": release.version,
        },
        related=_run_of(context),
        payload=event_payload(entry.event),
    )
    with brief_client() as client:
        post_event(client, event)


def event_payload(event: DeploymentEvent) -> dict[str, Any]:
    """An event's payload; one that is too large for Prefect is sent without its verdict's rules,
    which the log has."""
    if len(event.model_dump_json()) > MAX_PAYLOAD_BYTES:
        verdict = event.data.verdict.model_copy(update={"rules": ()})
        event = event.model_copy(
            update={"data": event.data.model_copy(update={"verdict": verdict})}
        )
    return event.model_dump(mode="json")
