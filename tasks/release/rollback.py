"""Roll back: deploy an earlier release again, at once and without a training.

The release that is left is quarantined first, so that the next run, which makes the same files,
does not undo the rollback. Then the earlier one is claimed, revealed and announced as any release
is. The same call, or the next run of the model, finishes one that was interrupted.
"""

from __future__ import annotations

from tasks.contracts.errors import BadRequest
from tasks.contracts.release import LogEntry, Release
from tasks.release import deployment_log
from tasks.release.announce import announce_now
from tasks.release.holds import nothing_deployed, quarantine, quarantine_of
from tasks.release.provenance import publish_settings
from tasks.release.publish import finish_now, restore
from tasks.runtime.context import RunContext
from tasks.storage.store import Store, open_store


def roll_back(
    name: str, channel: str, to: str, by: str, reason: str, context: RunContext
) -> LogEntry:
    """Deploy an earlier release again, and quarantine the one that is left.

    Args:
        name, channel: The model and its channel.
        to: The version to return to, or its beginning. Empty: the one before.
        by, reason: Who, as stated, and why.
        context: The store, and the run if there is one.

    Returns:
        The entry of its deployment.

    Raises:
        NotFound: The model has no log.
        BadRequest: There is no such release, or it is deployed already, or quarantined.
        StorageFailed: Its files cannot be found any more.
        NoAccess, HubFailed: A target failed; the same call goes on from there.
        BaselineMoved: Another release was revealed at this moment.
    """
    store = open_store(context.store)
    newest = deployment_log.head(store, name, channel)
    if newest is None:
        raise nothing_deployed(store, name, channel)
    deployed = deployment_log.deployed(store, name, channel)
    if deployed and _was_begun_by(store, deployed, context.run_name):
        return deployed  # This run is retried: it died, or was finished by another one.
    begun = newest if newest.kind == "revealing" else None
    if begun and begun.cause == "rollback":
        if _matches(begun.release, to):
            return announce_now(finish_now(begun, store), context)
        begun = None
    left = begun or deployed
    if left is None:
        raise nothing_deployed(store, name, channel)
    wanted = _earlier(store, name, channel, left, to)
    restore(wanted, store, publish_settings(wanted, store).private)
    newest = quarantine(store, left, newest, by, reason, context.run_name)
    claim = deployment_log.claim(
        store,
        wanted.model_copy(update={"publications": ()}),
        newest.number,
        context.run_name,
        cause="rollback",
        by=by,
        reason=reason,
        undone=left.number,
        targets=_targets(store, left, wanted),
    )
    return announce_now(finish_now(claim, store), context)


def _was_begun_by(store: Store, deployed: LogEntry, run_name: str) -> bool:
    """Whether a run has claimed the right to a rollback that is deployed now."""
    if deployed.cause != "rollback" or not run_name:
        return False
    name, channel = deployed.release.name, deployed.release.channel
    claim, *_ = deployment_log.entries(store, name, channel, after=deployed.number - 2)
    return claim.run == run_name


def _matches(release: Release, version: str) -> bool:
    return release.version.startswith(version)


def _earlier(store: Store, name: str, channel: str, left: LogEntry, to: str) -> Release:
    """The release to return to."""
    deployed = {
        entry.release.digest: entry.release
        for entry in deployment_log.newest_first(store, name, channel)
        if entry.kind == "deployed"
    }
    others = [each for each in deployed.values() if each.digest != left.release.digest]
    where = f"{name} on {channel}"
    if to and _matches(left.release, to):
        raise BadRequest(
            f"--to {to}",
            f"the version that is deployed on {channel}",
            "an earlier one",
            _choose(others),
        )
    found = [each for each in others if _matches(each, to)]
    if not found:
        raise BadRequest(
            where,
            f"no earlier release {to}".rstrip(),
            "a release to return to",
            _choose(others) if others else "there is none: release another model",
        )
    if to:
        if len(found) > 1:
            raise BadRequest(f"--to {to}", f"{len(found)} versions", "one", _choose(found))
        if held := quarantine_of(store, name, found[0].digest):
            raise BadRequest(
                f"--to {to}",
                f"a version that {held.by} quarantined: {held.reason}",
                "a version that may be deployed",
                f"run `burnish lift {name} {held.version} --reason WHY` first, or choose another",
            )
        return found[0]
    for each in found:
        if not quarantine_of(store, name, each.digest):
            return each
    raise BadRequest(
        where,
        f"only quarantined earlier releases ({', '.join(each.version for each in found)})",
        "a release to return to",
        f"run `burnish lift {name} VERSION --reason WHY` for one of them",
    )


def _choose(releases: list[Release]) -> str:
    return f"choose one of {', '.join(each.version for each in releases[:10])}"


def _targets(store: Store, left: LogEntry, wanted: Release) -> tuple[str, ...]:
    """Where the release is to be revealed: wherever it was, and wherever the other one is."""
    uris = [each.target for each in (*wanted.publications, *left.release.publications)]
    if left.kind == "revealing":
        uris += publish_settings(left.release, store).targets
    return tuple(dict.fromkeys(uris))
