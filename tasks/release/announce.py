"""Announce: append the release to the log, then deliver the event.

The log comes first and is the truth. What cannot be delivered now is delivered by the next run
(`tasks.release.delivery`).
"""

from __future__ import annotations

from prefect import task

from tasks.contracts.release import Deployment, DeploymentEvent, LogEntry, Release
from tasks.release import deployment_log
from tasks.release.delivery import deliver_owed
from tasks.release.provenance import provenance_of
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.storage.store import Store, open_store

EVENT_TYPE = "burnish.model.deployed"


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
    return announce_now(claim, context)


def announce_now(claim: LogEntry, context: RunContext) -> LogEntry:
    """As `announce`, without being a task."""
    store = open_store(context.store)
    before = deployment_log.deployed(store, claim.release.name, claim.release.channel)
    event = make_event(claim, before, store)
    said = {name: getattr(claim, name) for name in ("cause", "by", "reason", "undone")}
    entry = deployment_log.append(
        store,
        deployment_log.following(
            claim, "deployed", context.run_name, release=claim.release, event=event, **said
        ),
    )
    run_logger().info("announced version %s as event %s", entry.release.version, event.id)
    deliver_owed(entry.release.name, entry.release.channel, context)
    return entry


def make_event(claim: LogEntry, before: LogEntry | None, store: Store) -> DeploymentEvent:
    """The event of a release, from its provenance alone, so any run can make it.

    Args:
        claim: The log entry that claimed the right to reveal the release.
        before: The deployment that it replaces; None if it is the first.
        store: The store with its provenance.
    """
    release = claim.release
    recorded = provenance_of(release, store)
    source = event_source(release)
    return DeploymentEvent(
        id=DeploymentEvent.make_id(source, "deployed", release.digest, claim.number),
        source=source,
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
            cause=claim.cause,
            by=claim.by,
            reason=claim.reason,
        ),
    )


def event_source(release: Release) -> str:
    """The source of a release's events: its model and channel."""
    return f"burnish/{release.name}/{release.channel}"
