"""Announce: enter the release in the log, then tell everyone who is owed the event.

The log comes first and is the truth. Deliveries carry the same event id however often they are
made, and a marker in the store says which were made, so that a restart finishes what is owed.
"""

from __future__ import annotations

import uuid

from prefect import get_run_logger, task
from prefect.events import emit_event

from tasks.cache import Room
from tasks.contracts.candidate import Candidate
from tasks.contracts.release import Deployment, DeploymentEvent, LogEntry, Release
from tasks.release import ledger
from tasks.store import open_store

EVENT_TYPE = "burnish.model.deployed"
# Prefect's server drops subscribers at 1 MiB; a payload stays far below it.
MAX_PAYLOAD_BYTES = 64 * 1024


@task(name="announce", task_run_name="announce", persist_result=False)
def announce(candidate: Candidate, release: Release, claim: int, room: Room) -> LogEntry:
    """Enter a revealed release in the log, and deliver its event.

    Args:
        candidate: What the run made.
        release: With its publications.
        claim: Number of the log entry that claimed the right to reveal it.
        room: Where to work.

    Raises:
        BaselineMoved: Another publisher took over after the claim.
    """
    store = open_store(room.store)
    before = ledger.deployed(store, release.name, release.channel)
    event = make_event(candidate, release, claim, before)
    entry = ledger.append(
        store,
        LogEntry(
            number=claim + 1,
            kind="deployed",
            at=event.time,
            run=room.run_name,
            release=release,
            event=event,
        ),
    )
    get_run_logger().info("announced version %s as event %s", release.version, event.id)
    deliver(entry, room)
    return entry


def make_event(
    candidate: Candidate, release: Release, claim: int, before: LogEntry | None
) -> DeploymentEvent:
    """The event of a release, without its place in the log being taken yet."""
    verdict = candidate.judged.verdict
    return DeploymentEvent(
        id=DeploymentEvent.make_id("deployed", release.digest, claim),
        source=f"burnish/{release.name}/{release.channel}",
        type=EVENT_TYPE,
        subject=f"{release.name}/{release.version}",
        time=ledger.utc_now(),
        data=Deployment(
            model=release.name,
            channel=release.channel,
            task=candidate.recipe.task,
            version=release.version,
            digest=release.digest,
            publications=release.publications,
            recipe_digest=candidate.recipe.digest,
            metrics=candidate.scored.metrics,
            baseline_metrics=candidate.baseline.metrics if candidate.baseline else {},
            verdict=verdict,
            provenance=release.provenance.uri,
            previous=before.release.version if before else None,
        ),
    )


def deliver(entry: LogEntry, room: Room) -> bool:
    """Deliver an entry's event to Prefect unless it was delivered; True if it was owed.

    An event too large for Prefect is sent without its verdict's rules: the log has them.
    """
    store = open_store(room.store)
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
    store.objects.write(marker, ledger.utc_now().encode())
    return True


def _payload(event: DeploymentEvent) -> dict:
    if len(event.model_dump_json()) > MAX_PAYLOAD_BYTES:
        verdict = event.data.verdict.model_copy(update={"rules": ()})
        event = event.model_copy(
            update={"data": event.data.model_copy(update={"verdict": verdict})}
        )
    return event.model_dump(mode="json")
