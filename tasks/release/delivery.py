"""Deliver deployment events to Prefect and to webhooks; mark each delivery once it is confirmed.

A marker in the store says which receiver has which event. It is written after the receiver's
confirmation, so that an event is never lost; one that is delivered twice has the same id. Events
are delivered to each receiver in the order of the log, so those that are owed are always the newest
ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from prefect.events import Event

from tasks.contracts.base import Contract
from tasks.contracts.errors import BurnishError
from tasks.contracts.release import DeploymentEvent, LogEntry
from tasks.release import deployment_log
from tasks.release.webhooks import post_webhook, receiver_name
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.prefect_api import brief_client, post_event
from tasks.storage.store import Store, open_store

# Prefect's server drops subscribers at 1 MiB; payloads stay far below.
MAX_PAYLOAD_BYTES = 64 * 1024
PREFECT = "prefect"


class Webhook(Contract):
    """A receiver that the recipe names.

    Attributes:
        url: Where it is.
        after: It is owed the entries with a higher number.
    """

    url: str
    after: int


class Webhooks(Contract):
    """The webhooks of a model and channel, kept in the store: whoever delivers needs no recipe."""

    webhooks: tuple[Webhook, ...] = ()


class Owed(NamedTuple):
    """A deployment that somebody has not heard of."""

    entry: LogEntry
    receivers: tuple[str, ...]
    """`prefect`, and URLs."""

    @property
    def sentence(self) -> str:
        """For a run's page; a URL's path may be secret."""
        names = ", ".join(receiver_words(each) for each in self.receivers)
        return (
            f"The event of version {self.entry.release.version} has not reached {names}: the next "
            "run of this model delivers it, or `burnish tend`."
        )


def receiver_words(receiver: str) -> str:
    """A receiver for people; a URL's path may be secret."""
    return "Prefect" if receiver == PREFECT else f"the webhook at {urlsplit(receiver).hostname}"


def set_webhooks(store: Store, name: str, channel: str, urls: Sequence[str]) -> None:
    """Set which webhooks are told of a model's deployments from now on."""
    before = {each.url: each for each in _webhooks(store, name, channel)}
    if list(before) == list(urls):
        return
    newest = deployment_log.head(store, name, channel)
    new = Webhooks(
        webhooks=tuple(
            before.get(url) or Webhook(url=url, after=newest.number if newest else 0)
            for url in urls
        )
    )
    store.objects.write(_webhooks_path(name, channel), new.model_dump_json(indent=1).encode())


def _webhooks(store: Store, name: str, channel: str) -> tuple[Webhook, ...]:
    found = store.read_json(_webhooks_path(name, channel))
    return Webhooks.model_validate(found).webhooks if found else ()


def _webhooks_path(name: str, channel: str) -> str:
    return f"webhooks/{name}/{channel}.json"


def deliver_owed(name: str, channel: str, context: RunContext) -> list[LogEntry]:
    """Deliver the events of a log that its receivers do not have, the oldest first.

    A delivery that fails is only logged: the release is deployed, and the next run tries again.

    Returns:
        The entries of which something was delivered now.
    """
    store = open_store(context.store)
    delivered, failed = [], set()
    for entry, receivers in owed(store, name, channel):
        for receiver in receivers:
            if receiver in failed:
                continue  # In order: what is older has failed.
            try:
                if receiver == PREFECT:
                    send(entry, context)
                else:
                    body = entry.event.model_dump_json().encode()
                    post_webhook(receiver, entry.event.id, body)
            except Exception as error:  # Whatever it is, it must not fail a run that has released.
                failed.add(receiver)
                # The text of another's error may have the URL, which may be a secret.
                known = isinstance(error, BurnishError) or receiver == PREFECT
                run_logger().warning(
                    "The event of version %s could not be delivered to %s (%s%s). It is owed: the "
                    "next run of this model delivers it, or `burnish tend`.",
                    entry.release.version,
                    receiver_words(receiver),
                    type(error).__name__,
                    f": {error}" if known else "",
                )
                continue
            mark_delivered(store, entry.event.id, receiver)
            if entry not in delivered:
                delivered.append(entry)
    return delivered


def owed(store: Store, name: str, channel: str) -> list[Owed]:
    """The deployments after the last one that every receiver has heard of, in order."""
    webhooks, found = _webhooks(store, name, channel), []
    for entry in deployment_log.newest_first(store, name, channel):
        if entry.kind != "deployed":
            continue
        receivers = [PREFECT, *(each.url for each in webhooks if entry.number > each.after)]
        lacking = [each for each in receivers if not was_delivered(store, entry.event.id, each)]
        if not lacking:
            break
        found.append(Owed(entry, tuple(lacking)))
    return found[::-1]


def was_delivered(store: Store, event_id: str, receiver: str = PREFECT) -> bool:
    """Whether a receiver confirmed an event."""
    return store.objects.read(_marker(event_id, receiver)) is not None


def mark_delivered(store: Store, event_id: str, receiver: str = PREFECT) -> None:
    """Remember that a receiver confirmed an event."""
    store.objects.write(_marker(event_id, receiver), deployment_log.utc_now().encode())


def send_once(store: Store, event: Event) -> bool:
    """Post an event to Prefect's server unless one with its id was; returns whether it was posted
    now.

    Nothing fails because somebody could not be told.
    """
    with contextlib.suppress(Exception):
        if was_delivered(store, str(event.id)):
            return False
        with brief_client() as client:
            post_event(client, event)
        mark_delivered(store, str(event.id))
        return True
    return False


def _marker(event_id: str, receiver: str) -> str:
    return f"deliveries/{event_id}/{receiver if receiver == PREFECT else receiver_name(receiver)}"


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
            **model_resource(release.name, release.channel),
            "burnish.version": release.version,
        },
        related=run_resources(context.run_id, context.run_name),
        payload=event_payload(entry.event),
    )
    with brief_client() as client:
        post_event(client, event)


def model_resource(name: str, channel: str) -> dict[str, str]:
    """A model and channel as the resource of Prefect's events."""
    return {
        "prefect.resource.id": f"burnish.model.{name}.{channel}",
        "prefect.resource.name": name,
    }


def run_resources(run_id: str, run_name: str) -> list[dict[str, str]]:
    """A run as what Prefect's events are related to; nothing without one."""
    if not run_id:
        return []
    return [
        {
            "prefect.resource.id": f"prefect.flow-run.{run_id}",
            "prefect.resource.role": "flow-run",
            "prefect.resource.name": run_name,
        }
    ]


def event_payload(event: DeploymentEvent) -> dict[str, Any]:
    """An event's payload; one that is too large for Prefect is sent without its verdict's rules,
    which the log has."""
    if len(event.model_dump_json()) > MAX_PAYLOAD_BYTES:
        verdict = event.data.verdict.model_copy(update={"rules": ()})
        event = event.model_copy(
            update={"data": event.data.model_copy(update={"verdict": verdict})}
        )
    return event.model_dump(mode="json")
