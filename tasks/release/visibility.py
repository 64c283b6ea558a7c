"""What consumers see, read from the deployment log at the moment of writing."""

from __future__ import annotations

from datetime import datetime

from tasks.contracts.errors import BurnishError
from tasks.contracts.release import LogEntry
from tasks.release import deployment_log
from tasks.release.delivery import owed
from tasks.storage.store import Store


def visible_now(store: Store, name: str, channel: str, run: str, began: datetime | None) -> str:
    """Sentences for a run's page: what the run released, what may be half revealed, what is
    deployed, and whose event has not been delivered.

    Args:
        store: The store with the log.
        name, channel: The model and its channel.
        run: The run's name.
        began: When the run began: an older run may have had the same name. None if it did not.
    """
    try:
        newest = deployment_log.head(store, name, channel)
        revealing = newest is not None and newest.kind == "revealing"
        sentences = [
            f"Version {entry.release.version} was released by this run."
            for entry in _released_by(store, name, channel, run, began)
        ]
        if not sentences and not revealing:
            sentences = ["Nothing was published by this run."]
        if revealing:
            sentences.append(
                f"Files of version {newest.release.version} (run {newest.run}) may be visible at "
                "some targets, but it is not announced; the next run finishes or replaces it."
            )
        sentences.append(f"Deployed: {deployed_phrase(store, name, channel)}.")
        sentences += [each.sentence for each in owed(store, name, channel)]
    except BurnishError as error:
        return f"Unknown, since the log cannot be read: {error}"
    return " ".join(sentences)


def deployed_phrase(store: Store, name: str, channel: str) -> str:
    """What consumers are served now, as a phrase."""
    entry = deployment_log.deployed(store, name, channel)
    if entry is None:
        return "nothing yet"
    phrase = f"version {entry.release.version} on {channel}"
    if entry.cause == "rollback":
        phrase += f", since {entry.by} rolled back at {entry.at} ({entry.reason})"
    return phrase


def _released_by(
    store: Store, name: str, channel: str, run: str, began: datetime | None
) -> list[LogEntry]:
    """The deployments that a run wrote to the log, in order."""
    found = []
    for entry in deployment_log.newest_first(store, name, channel):
        # Entries have whole seconds.
        if began is None or datetime.fromisoformat(entry.at) < began.replace(microsecond=0):
            break
        if entry.kind == "deployed" and entry.run == run:
            found.append(entry)
    return found[::-1]
