"""Holds: releases that must not be deployed again, and channels that must not change.

A rollback quarantines the release that it leaves, by the digest of its files, on every channel:
otherwise the next run would make the same files and undo it. `burnish lift` ends a quarantine,
`burnish unfreeze` a freeze. Each is an entry of the log, so a run that has read the log before
cannot claim the right to reveal anything after it.
"""

from __future__ import annotations

from tasks.contracts.errors import BadRequest, NotFound
from tasks.contracts.release import Hold, LogEntry, Quarantine
from tasks.release import deployment_log
from tasks.storage.store import Store


def quarantine_of(store: Store, name: str, digest: str) -> Quarantine | None:
    """The quarantine of a release's files, on whichever channel it was declared; None without
    one."""
    for _, newest in _newest_entries(store, name):
        for quarantine in newest.quarantined:
            if quarantine.digest == digest:
                return quarantine
    return None


def freeze_of(store: Store, name: str, channel: str) -> Hold | None:
    """The freeze of a channel; None if it is not frozen."""
    newest = deployment_log.head(store, name, channel)
    return newest.frozen if newest else None


def quarantine_sentence(name: str, quarantine: Quarantine) -> str:
    """Why a release is held, and what to do."""
    return (
        f"Version {quarantine.version} is quarantined by {quarantine.by} since {quarantine.at}: "
        f"{quarantine.reason}. To let it be released again, run "
        f"`burnish lift {name} {quarantine.version} --reason WHY`."
    )


def freeze_sentence(name: str, channel: str, freeze: Hold) -> str:
    """Why nothing is released on a channel, and what to do."""
    return (
        f"Channel {channel} is frozen by {freeze.by} since {freeze.at}: {freeze.reason}. To let "
        f"releases through again, run `burnish unfreeze {name} --channel {channel} --reason WHY`."
    )


def quarantine(
    store: Store, left: LogEntry, newest: LogEntry, by: str, reason: str, run: str
) -> LogEntry:
    """Quarantine a release.

    Args:
        store: The store with the log.
        left: The entry of the release.
        newest: The log's newest entry.
        by, reason: Who, as stated, and why.
        run: The run's name; empty for a command.

    Returns:
        The log's newest entry after that.

    Raises:
        BaselineMoved: The log has grown since.
    """
    release = left.release
    if any(each.digest == release.digest for each in newest.quarantined):
        return newest
    declared = Quarantine(
        by=by,
        reason=reason,
        at=deployment_log.utc_now(),
        version=release.version,
        digest=release.digest,
    )
    standing = (*newest.quarantined, declared)
    said = {"by": by, "reason": reason, "release": release}
    entry = deployment_log.following(newest, "quarantined", run, quarantined=standing, **said)
    return deployment_log.append(store, entry)


def lift(store: Store, name: str, version: str, by: str, reason: str) -> list[Quarantine]:
    """End the quarantine of a version, or of all if it is empty, on every channel.

    Returns:
        The quarantines that have ended.

    Raises:
        NotFound: There is none.
        BaselineMoved: The log has grown at this moment.
    """
    ended = []
    for channel, newest in _newest_entries(store, name):
        for each in newest.quarantined:
            if not each.version.startswith(version):
                continue
            standing = tuple(other for other in newest.quarantined if other != each)
            released = next(
                entry.release
                for entry in deployment_log.newest_first(store, name, channel)
                if entry.release.digest == each.digest
            )
            _refuse_while_revealing(newest, name, channel)
            said = {"by": by, "reason": reason, "release": released}
            entry = deployment_log.following(newest, "lifted", "", quarantined=standing, **said)
            newest = deployment_log.append(store, entry)
            ended.append(each)
    if not ended:
        standing = [
            each.version
            for _, newest in _newest_entries(store, name)
            for each in newest.quarantined
        ]
        raise NotFound(
            f"quarantine of {name} {version}".rstrip(),
            f"quarantines of {', '.join(standing)}" if standing else "none",
            "a quarantined version",
            "name one of these" if standing else "nothing is to be lifted",
        )
    return ended


def freeze(store: Store, name: str, channel: str, by: str, reason: str) -> LogEntry:
    """Let no run release anything on a channel; a rollback still can.

    Raises:
        NotFound: Nothing was ever deployed there.
        BadRequest: It is frozen, or a release is being revealed.
        BaselineMoved: The log has grown at this moment.
    """
    newest = _newest(store, name, channel)
    if newest.frozen:
        raise BadRequest(
            f"channel {channel} of {name}",
            f"that {newest.frozen.by} froze it {newest.frozen.at}: {newest.frozen.reason}",
            "a channel that is not frozen",
            "leave it as it is",
        )
    hold = Hold(by=by, reason=reason, at=deployment_log.utc_now())
    return _put_freeze(store, newest, "frozen", hold, by, reason)


def unfreeze(store: Store, name: str, channel: str, by: str, reason: str) -> LogEntry:
    """Let runs release on a channel again.

    Raises:
        NotFound: Nothing was ever deployed there.
        BadRequest: It is not frozen.
        BaselineMoved: The log has grown at this moment.
    """
    newest = _newest(store, name, channel)
    if not newest.frozen:
        raise BadRequest(
            f"channel {channel} of {name}",
            "that it is not frozen",
            "a frozen channel",
            "leave it as it is",
        )
    return _put_freeze(store, newest, "unfrozen", None, by, reason)


def _put_freeze(
    store: Store, newest: LogEntry, kind: str, hold: Hold | None, by: str, reason: str
) -> LogEntry:
    name, channel = newest.release.name, newest.release.channel
    _refuse_while_revealing(newest, name, channel)
    deployed = deployment_log.deployed(store, name, channel)
    said = {"by": by, "reason": reason, "release": (deployed or newest).release}
    return deployment_log.append(
        store, deployment_log.following(newest, kind, "", frozen=hold, **said)
    )


def _refuse_while_revealing(newest: LogEntry, name: str, channel: str) -> None:
    """An entry on top of a claim would leave a release half revealed."""
    if newest.kind == "revealing":
        raise BadRequest(
            f"log of {name}/{channel}",
            f"that version {newest.release.version} is being revealed (entry {newest.number})",
            "no release under way",
            f"wait until it is deployed; if its run was interrupted, start it again, or run "
            f"`burnish rollback {name} --channel {channel} --reason WHY`",
        )


def _newest(store: Store, name: str, channel: str) -> LogEntry:
    newest = deployment_log.head(store, name, channel)
    if newest is None:
        raise nothing_deployed(store, name, channel)
    return newest


def nothing_deployed(store: Store, name: str, channel: str) -> NotFound:
    """The error for a log that does not exist."""
    known = ", ".join(deployment_log.known_logs(store)) or "no deployment log"
    return NotFound(
        f"{name} on {channel} in {store.uri}",
        known,
        "a model that was released there",
        "correct the name, --channel or --store",
    )


def _newest_entries(store: Store, name: str) -> list[tuple[str, LogEntry]]:
    """The newest entry of each channel's log."""
    found = [
        (channel, deployment_log.head(store, name, channel))
        for _, channel in deployment_log.all_logs(store, name)
    ]
    return [(channel, newest) for channel, newest in found if newest]
