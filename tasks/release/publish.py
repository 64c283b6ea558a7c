"""Publish: stage, verify, reveal, at every target that the recipe names.

Each step checks whether it was done already, so the next run finishes one that was killed at any
point. The right to reveal is an entry of the deployment log (tasks/release/deployment_log.py),
whose fencing number keeps a slower publisher from undoing a later one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prefect import task

from tasks.contracts.errors import BurnishError, StorageFailed
from tasks.contracts.recipe_release import PublishRecipe
from tasks.contracts.release import LogEntry, Publication, Release
from tasks.release import deployment_log
from tasks.release.inputs import ReleaseInputs
from tasks.release.provenance import make_release, publish_settings
from tasks.release.targets import Target, open_target
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.retry import with_retries
from tasks.storage.folders import require_space
from tasks.storage.store import Store, open_store


@task(name="publish", task_run_name="publish", persist_result=False)
def publish(inputs: ReleaseInputs, context: RunContext) -> LogEntry:
    """Publish a promoted candidate at every target.

    Returns:
        The log entry that claimed the right to reveal it; its release has its publications.

    Raises:
        BaselineMoved: Another release was revealed meanwhile; nothing of this one is visible.
        NoAccess, StorageFailed, HubFailed: A target failed; the next run resumes from there.
    """
    store = open_store(context.store)
    release = make_release(inputs, store)
    targets = open_targets(inputs.publish)
    with _staged(release, targets, store) as folder:
        claim = deployment_log.claim(
            store, release, inputs.log_number, context.run_name, **_approved(inputs)
        )
        return _reveal(claim, targets, folder, store)


def _approved(inputs: ReleaseInputs) -> dict[str, str]:
    """What the log says of who approved a release."""
    answer = inputs.approval
    return {"by": answer.by, "reason": answer.reason} if answer else {}


@task(name="finish", task_run_name="finish an interrupted release", persist_result=False)
def finish(claim: LogEntry, context: RunContext) -> LogEntry:
    """Publish a release that an earlier run claimed the right to reveal, and did not finish.

    Args:
        claim: The newest entry of the log, which no deployment followed.
        context: Where the step works.

    Returns:
        The claim; its release has its publications.

    Raises:
        As `publish`.
    """
    return finish_now(claim, open_store(context.store))


def finish_now(claim: LogEntry, store: Store) -> LogEntry:
    """As `finish`, without being a task."""
    release = claim.release
    settings = publish_settings(release, store)
    if claim.targets:
        settings = settings.model_copy(update={"targets": claim.targets})
    targets = open_targets(settings)
    with _staged(release, targets, store) as folder:
        return _reveal(claim, targets, folder, store)


@task(name="complete", task_run_name="publish at new targets", persist_result=False)
def publish_missing(
    entry: LogEntry, settings: PublishRecipe, context: RunContext
) -> tuple[Publication, ...]:
    """Publish the deployed release at targets that were added to the recipe since.

    Returns:
        The publications that were added.
    """
    store = open_store(context.store)
    missing = missing_targets(entry.release, settings)
    with _staged(entry.release, missing, store) as folder:
        return _reveal(entry, missing, folder, store).release.publications


@contextlib.contextmanager
def _staged(release: Release, targets: list[Target], store: Store) -> Iterator[Path]:
    """Stage a release at every target; yields a folder with its files."""
    with store.scratch() as scratch:
        folder = release_folder(release, store, scratch / "release")
        for target in targets:
            with_retries(f"staging at {target.uri}", partial(target.stage, release, folder))
        yield folder


def _reveal(entry: LogEntry, targets: list[Target], folder: Path, store: Store) -> LogEntry:
    release, publications = entry.release, []
    for target in targets:
        # The Hub knows no fencing numbers: a slow publisher must see that it was replaced.
        deployment_log.check_not_replaced(store, entry)
        reveal = partial(target.reveal, release, folder, entry.number)
        publications.append(with_retries(f"revealing at {target.uri}", reveal))
        run_logger().info("published version %s at %s", release.version, publications[-1].uri)
    released = release.model_copy(update={"publications": tuple(publications)})
    return entry.model_copy(update={"release": released})


def restore(release: Release, store: Store, private: bool) -> None:
    """Restore a release's model from where it was published, if the store lost it: it may be the
    baseline, whose data no longer exist.

    Raises:
        StorageFailed: No publication has its files any more.
    """
    if store.holds(release.artifact):
        return
    for publication in release.publications:
        with store.scratch() as scratch, contextlib.suppress(BurnishError):
            folder = scratch / "model"
            folder.mkdir()
            open_target(publication.target, private).fetch(release, folder)
            (folder / "README.md").unlink(missing_ok=True)
            if release.gguf:
                store.put("gguf", _split_gguf(folder, scratch / "gguf"))
            if store.put("model", folder).digest == release.artifact.digest:
                run_logger().info("restored version %s from %s", release.version, publication.uri)
                return
    raise StorageFailed(
        f"release {release.name} {release.version}",
        "no complete copy, neither in the store nor where it was published",
        "the deployed model, to compare the candidate with",
        "restore its files at one of its targets, or release another model",
    )


def _split_gguf(release: Path, folder: Path) -> Path:
    """Move the files of a GGUF export out of a release's folder; returns their new folder."""
    folder.mkdir()
    for file in [*release.glob("*.gguf"), *release.glob("Modelfile")]:
        file.rename(folder / file.name)
    return folder


def missing_targets(release: Release, settings: PublishRecipe) -> list[Target]:
    """Targets of the recipe where the release is not revealed."""
    return [target for target in open_targets(settings) if not target.holds(release)]


def open_targets(settings: PublishRecipe) -> list[Target]:
    """The recipe's targets."""
    return [open_target(uri, settings.private) for uri in settings.targets]


def release_folder(release: Release, store: Store, folder: Path) -> Path:
    """The files of a release: the model, the same model as GGUF if there is one, and the card."""
    copy_files(store.open(release.artifact), folder)
    if release.gguf:
        copy_files(store.open(release.gguf), folder)
    copy_files(store.open(release.provenance) / "card", folder)
    return folder


def copy_files(source: Path, target: Path) -> None:
    """Copy a folder's files into another, which may exist.

    Raises:
        StorageFailed: The disk has no room for them.
    """
    target.mkdir(parents=True, exist_ok=True)
    require_space(target, sum(file.stat().st_size for file in source.rglob("*") if file.is_file()))
    shutil.copytree(source, target, dirs_exist_ok=True)
