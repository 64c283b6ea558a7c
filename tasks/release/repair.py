"""Repair a deployment log and its releases from what is whole elsewhere.

An entry of the log is implied by its neighbours: a deployment follows its claim, and targets and
delivery markers show whether a claim became a deployment. An artifact's files are found by their
hashes: in other artifacts, or where the release was published.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts.artifacts import Artifact, FileEntry
from tasks.contracts.errors import BurnishError, DamagedArtifact
from tasks.contracts.release import (
    DeploymentEvent,
    Hold,
    LogEntry,
    Publication,
    Quarantine,
    Release,
)
from tasks.release import deployment_log
from tasks.release.announce import event_source, make_event
from tasks.release.delivery import was_delivered
from tasks.release.provenance import publish_settings
from tasks.release.publish import open_targets
from tasks.release.targets import open_target
from tasks.storage.folders import file_sha256
from tasks.storage.store import Store, artifact_path, manifest_digest

Finding = tuple[bool, str]
"""Whether all is well now, and a sentence."""


def repair(store: Store, name: str, channel: str) -> list[Finding]:
    """Repair a model's log on a channel, and the artifacts of the releases that matter now: the
    deployed one, and one that is being revealed.

    No run of the model may be under way.

    Returns:
        What was found and done, in order.

    Raises:
        NoAccess, StorageFailed: The store cannot be read or written.
    """
    # A store of its own, for which nothing has been verified yet.
    store = Store(store.objects)
    found = list(_repair_log(store, name, channel))
    entries = deployment_log.readable_entries(store, name, channel)
    if None in entries.values():
        return found
    newest = deployment_log.head(store, name, channel)
    deployed = deployment_log.deployed(store, name, channel)
    releases = {entry.release.digest: entry.release for entry in (deployed, newest) if entry}
    for release in releases.values():
        for artifact in filter(None, (release.artifact, release.gguf, release.provenance)):
            found.append(_repair_artifact(store, artifact, release))
    return found


# The log


def _repair_log(store: Store, name: str, channel: str) -> Iterator[Finding]:
    entries = deployment_log.readable_entries(store, name, channel)
    damaged = [number for number, entry in entries.items() if entry is None]
    if not damaged:
        yield True, f"The log is whole: {len(entries)} entries."
    # An entry that is mended may be the neighbour that another one needs.
    for number in [*damaged, *reversed(damaged)]:
        if entries[number] is not None:
            continue
        mended = _implied_entry(store, entries, number)
        if mended:
            deployment_log.replace_damaged(store, name, channel, number, mended)
            entries[number] = mended
            version = mended.release.version
            yield True, f"Entry {number} is mended: version {version}, {mended.kind}."
    for number in reversed(damaged):
        if entries[number] is not None:
            continue
        if number == max(entries):
            deployment_log.replace_damaged(store, name, channel, number, None)
            del entries[number]
            yield (
                True,
                f"Entry {number}, the newest, is removed: nothing shows that it was a deployment. "
                "The next run claims its number again. If it was a quarantine or a freeze, make it "
                "again.",
            )
        else:
            path = deployment_log.entry_path(name, channel, number)
            yield (
                False,
                f"Entry {number} cannot be mended: nothing shows what it was. Restore {path} in "
                "the store from a backup.",
            )


def _implied_entry(
    store: Store, entries: dict[int, LogEntry | None], number: int
) -> LogEntry | None:
    """What a damaged entry was; None if its neighbours do not show it."""
    before, after = entries.get(number - 1), entries.get(number + 1)
    if after and after.kind == "deployed":
        # A deployment follows its claim at once.
        claimed = after.release.model_copy(update={"publications": ()})
        return after.model_copy(
            update={"number": number, "kind": "revealing", "release": claimed, "event": None}
        )
    if before and before.kind == "revealing":
        return _implied_deployment(store, entries, before)
    return _implied_hold(before, after) if before and after else None


def _implied_hold(before: LogEntry, after: LogEntry) -> LogEntry | None:
    """The entry between two others that changed what stands; None if nothing changed."""
    quarantined, frozen = _standing_below(after, before)
    had, has = set(before.quarantined), set(quarantined)
    release = before.release
    if has != had:
        kind, (concerned, *_) = "quarantined" if has > had else "lifted", has ^ had
        release = release.model_copy(
            update={"version": concerned.version, "digest": concerned.digest}
        )
        said = concerned if has > had else _UNKNOWN
    elif frozen != before.frozen:
        kind, said = ("frozen", frozen) if frozen else ("unfrozen", _UNKNOWN)
    else:
        return None
    return LogEntry(
        number=before.number + 1,
        kind=kind,
        at=said.at or before.at,
        run="",
        release=release,
        by=said.by,
        reason=said.reason,
        quarantined=quarantined,
        frozen=frozen,
    )


_UNKNOWN = Hold(by="unknown", reason="unknown, since the entry was damaged", at="")


def _standing_below(
    after: LogEntry, before: LogEntry
) -> tuple[tuple[Quarantine, ...], Hold | None]:
    """What stood before an entry changed it."""
    quarantined, frozen, digest = after.quarantined, after.frozen, after.release.digest
    if after.kind == "quarantined":
        quarantined = tuple(each for each in quarantined if each.digest != digest)
    if after.kind == "lifted":
        lifted = Quarantine(**dict(_UNKNOWN), version=after.release.version, digest=digest)
        known = (each for each in before.quarantined if each.digest == digest)
        quarantined = (*quarantined, next(known, lifted))
    if after.kind == "frozen":
        frozen = None
    if after.kind == "unfrozen":
        frozen = before.frozen or _UNKNOWN
    return quarantined, frozen


def _implied_deployment(
    store: Store, entries: dict[int, LogEntry | None], claim: LogEntry
) -> LogEntry | None:
    """The deployment that a claim became; None if nothing shows that it did."""
    release = claim.release
    try:
        targets = open_targets(publish_settings(release, store))
        publications = tuple(filter(None, (target.find(release) for target in targets)))
        revealed = any(target.holds(release) for target in targets)
    except DamagedArtifact:
        return None
    event_id = DeploymentEvent.make_id(
        event_source(release), "deployed", release.digest, claim.number
    )
    if not revealed and not was_delivered(store, event_id):
        return None
    before = [
        entry
        for number, entry in entries.items()
        if number < claim.number and entry and entry.kind == "deployed"
    ]
    return _deployment(store, claim, publications, before[-1] if before else None)


def _deployment(
    store: Store,
    claim: LogEntry,
    publications: tuple[Publication, ...],
    before: LogEntry | None,
) -> LogEntry:
    released = claim.release.model_copy(update={"publications": publications})
    claim = claim.model_copy(update={"release": released})
    # The claim's time is the nearest that is known.
    event = make_event(claim, before, store).model_copy(update={"time": claim.at})
    return claim.model_copy(update={"number": claim.number + 1, "kind": "deployed", "event": event})


# Artifacts


def _repair_artifact(store: Store, artifact: Artifact, release: Release) -> Finding:
    what = f"The {artifact.kind} of version {release.version}"
    try:
        store.open(artifact)
        return True, f"{what} is whole."
    except DamagedArtifact as error:
        damage = error.found
    if _restore_manifest(store, artifact) and _restore_files(store, artifact, release):
        store.open(artifact)
        return True, f"{what} is restored ({damage})."
    remedy = (
        "Runs go on without it: they do not compare their data with it."
        if artifact.kind == "provenance"
        else "Run the recipe that made it again."
    )
    return False, f"{what} is damaged ({damage}), and no other copy was found. {remedy}"


def _restore_manifest(store: Store, artifact: Artifact) -> bool:
    """Write an artifact's manifest again if its files are whole; returns whether it has one."""
    with contextlib.suppress(DamagedArtifact):
        store.manifest(artifact)
        return True
    home = f"{artifact_path(artifact)}/files/"
    entries = [
        FileEntry(path=path.removeprefix(home), size=size, sha256=store.objects.sha256(path) or "")
        for path, size in sorted(store.objects.sizes(home).items())
    ]
    if manifest_digest(entries) != artifact.digest:
        return False
    store.write_manifest(artifact.kind, artifact.digest, entries)
    return True


def _restore_files(store: Store, artifact: Artifact, release: Release) -> bool:
    """Restore an artifact's damaged files by their hashes; returns whether all are whole now."""
    home = f"{artifact_path(artifact)}/files"
    damaged = [
        entry
        for entry in store.manifest(artifact).files
        if store.objects.sha256(f"{home}/{entry.path}") != entry.sha256
    ]
    for copies in (_stored_copies, _published_copies):
        with store.scratch() as scratch:
            for entry, file in copies(store, release, damaged, scratch):
                store.objects.upload(f"{home}/{entry.path}", file)
                damaged.remove(entry)
    return not damaged


def _stored_copies(
    store: Store, release: Release, wanted: list[FileEntry], scratch: Path
) -> Iterator[tuple[FileEntry, Path]]:
    """Copies of files that another artifact has too, as a dataset has the hashes of its inputs."""
    sizes = store.objects.sizes("artifacts/")
    for number, entry in enumerate(list(wanted)):
        for path, size in sizes.items():
            if size == entry.size and store.objects.sha256(path) == entry.sha256:
                copy = scratch / str(number)
                store.objects.download(path, copy)
                yield entry, copy
                break


def _published_copies(
    store: Store, release: Release, wanted: list[FileEntry], scratch: Path
) -> Iterator[tuple[FileEntry, Path]]:
    """Copies of files that were published with the release."""
    for number, publication in enumerate(release.publications):
        if not wanted:
            return
        folder = scratch / str(number)
        folder.mkdir()
        # Those that can be fetched are used, even if others are missing.
        with contextlib.suppress(BurnishError):
            open_target(publication.target, private=True).fetch(release, folder)
        by_hash = {file_sha256(path): path for path in folder.rglob("*") if path.is_file()}
        for entry in list(wanted):
            if entry.sha256 in by_hash:
                copy = shutil.copy(by_hash[entry.sha256], scratch / "copy")
                yield entry, Path(copy)
