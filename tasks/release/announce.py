"""Announce: append the release to the log, then deliver the event.

The log comes first and is the truth. Repeated deliveries carry the same event id, and a marker in
the store says which were made, so that a restart makes those that are missing.
"""

from __future__ import annotations

import uuid

from prefect import task
from prefect.events import emit_event

from tasks.contracts.release import Deployment, DeploymentEvent, LogEntry
from tasks.release import deployment_log
from tasks.release.provenance import provenance_of
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.storage.store import Store, open_store

EVENT_TYPE = "burnish.model.deployed"
# Prefect's server drops subscribers at 1 MiB; payloads stay far below.
MAX_PAYLOAD_BYTES = 64 * 1024


@task(name="announce", task_run_name="announce", persist_result=False)
def announce(claim: LogEntry, context: RunContext) -> LogEntry:
    """Append a revealed release to the log, and deliver its event.

    Args:
        claim: The log entry that claimed the right to reveal it; its release has its publications.
        context: Where the step works.

    Returns:
        The entry of its deployment.

    Raises:
        BaselineMoved: Another publisher took over after the claim.
    """
    store = open_store(context.store)
    event = make_event(claim, store)
    entry = deployment_log.append(
        store,
        LogEntry(
            number=claim.number + 1,
            kind="deployed",
            at=event.time,
            run=context.run_name,
            release=claim.release,
            event=event,
        ),
    )
    run_logger().info("announced version %s as event %s", entry.release.version, event.id)
    deliver(entry, context)
    return entry


def make_event(claim: LogEntry, store: Store) -> DeploymentEvent:
    """The event of a release, from its provenance alone, so any run can make it."""
    release = claim.release
    recorded = provenance_of(release, store)
    before = deployment_log.deployed(store, release.name, release.channel)
    return DeploymentEvent(
        id=DeploymentEvent.make_id("deployed", release.digest, claim.number),
        source=f"burnish/{release.name}/{release.channel}",
        type=EVENT_TYPE,
        subject=f"{release.name}/{release.version}",
        time=deployment_log.utc_now(),
        data=Deployment(
            model=release.name,
            channel=release.channel,
            task=recorded["recipe"]["task"],
            version=release.version,
            digest=release.digest,
            publications=release.publications,
            recipe_digest=recorded["recipe_digest"],
            metrics=recorded["metrics"],
            baseline_metrics=recorded["baseline_metrics"],
            verdict=recorded["verdict"],
            provenance=release.provenance.uri,
            previous=before.release.version if before else None,
        ),
    )


def deliver(entry: LogEntry, context: RunContext) -> bool:
    """Deliver an entry's event to Prefect, unless it was delivered before; returns whether it was
    missing.

    An event that is too large for Prefect is sent without its verdict's rules: the log has them.
    """
    store = open_store(context.store)
    marker = f"deliveries/{entry.event.id}/prefect"
    if store.objects.read(marker):
        return False
    emit_event(
        event=entry.event.type,
        resource={
            "prefect.resource.id": f"burnish.model.{entry.release.name}.{entry.release.channel}",
            "prefect.resource.name": entry.release.name,
            "burnish.version": entry.release.version,
        },
        payload=_payload(entry.event),
        id=uuid.UUID(entry.event.id),
    )
    store.objects.write(marker, deployment_log.utc_now().encode())
    return True


def _payload(event: DeploymentEvent) -> dict:
    if len(event.model_dump_json()) > MAX_PAYLOAD_BYTES:
        verdict = event.data.verdict.model_copy(update={"rules": ()})
        event = event.model_copy(
            update={"data": event.data.model_copy(update={"verdict": verdict})}
        )
    return event.model_dump(mode="json")
