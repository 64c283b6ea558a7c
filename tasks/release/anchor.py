"""Which earlier release is the anchor: the one that every candidate must not be worse than.

It follows from the verdict of the deployed release, which says what it was compared with, and
whether it took that one's place. So a release that was rolled back never is the anchor.
"""

from __future__ import annotations

from tasks.contracts.errors import BadRecipe
from tasks.contracts.release import LogEntry
from tasks.contracts.verdict import AnchorState
from tasks.release import deployment_log
from tasks.release.holds import quarantine_of
from tasks.storage.store import Store

FIRST, NONE = "first", "none"


def anchor_of(store: Store, deployed: LogEntry, chosen: str) -> LogEntry | None:
    """The entry of the anchor; None if the recipe wants none.

    Args:
        store: The store with the log.
        deployed: The entry of the deployed release.
        chosen: The recipe's `gate.anchor`.

    Raises:
        BadRecipe: The recipe names a version that was never deployed, or is quarantined.
    """
    if chosen == NONE:
        return None
    if chosen != FIRST:
        return _named(store, deployed, chosen)
    state = _state(deployed)
    if state is None:
        return _oldest(store, deployed)
    anchor = deployed if state.moves else _entry(store, deployed, state.entry)
    while anchor and not _usable(store, anchor):
        state = _state(anchor)
        anchor = _entry(store, deployed, state.entry) if state else None
    return anchor or _oldest(store, deployed)


def metric_of(entry: LogEntry) -> str:
    """The metric by which a release passed its gate; empty if its verdict does not say."""
    rules = entry.event.data.verdict.rules if entry.event else ()
    return next((rule.metric for rule in rules if rule.rule in ("better", "not worse")), "")


def _state(entry: LogEntry) -> AnchorState | None:
    return entry.event.data.verdict.anchor if entry.event else None


def _usable(store: Store, entry: LogEntry) -> bool:
    return quarantine_of(store, entry.release.name, entry.release.digest) is None


def _entry(store: Store, deployed: LogEntry, number: int) -> LogEntry | None:
    name, channel = deployed.release.name, deployed.release.channel
    return deployment_log.entry(store, name, channel, number) if number else None


def _oldest(store: Store, deployed: LogEntry) -> LogEntry:
    """The first release of the same task and metric: of a log that is older than anchors."""
    task = deployed.event.data.task if deployed.event else ""
    found, metric = deployed, metric_of(deployed)
    for entry in _deployments(store, deployed):
        if entry.event is None or entry.event.data.task != task or metric_of(entry) != metric:
            break
        if _usable(store, entry):
            found = entry
    return found


def _named(store: Store, deployed: LogEntry, chosen: str) -> LogEntry:
    entries = {entry.release.version: entry for entry in _deployments(store, deployed)}
    found = [entry for version, entry in entries.items() if version.startswith(chosen)]
    if len(found) != 1 or not _usable(store, found[0]):
        usable = [version for version, entry in entries.items() if _usable(store, entry)]
        raise BadRecipe(
            "gate.anchor",
            f"{chosen!r}, which is {'quarantined' if len(found) == 1 else 'no such release'}",
            "first, none, or the version of a release",
            f"choose one of {', '.join(usable[:10])}",
        )
    return found[0]


def _deployments(store: Store, deployed: LogEntry) -> list[LogEntry]:
    """All deployments, the newest first."""
    name, channel = deployed.release.name, deployed.release.channel
    entries = deployment_log.newest_first(store, name, channel)
    return [entry for entry in entries if entry.kind == "deployed"]
