"""Publish: stage, verify, reveal, at every target that the recipe names.

Each step asks whether it was done already, so a run that was killed on any line is finished by the
next one. The right to reveal is an entry of the model's log (tasks/release/ledger.py), whose number
is the fence that keeps a slower publisher from undoing a later one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
from prefect import task

from tasks.cache import Room
from tasks.contracts.artifact import Loaded, StepResult
from tasks.contracts.candidate import Candidate
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import VERSION_DIGITS, LogEntry, Publication, Release
from tasks.errors import BurnishError, StorageFailed
from tasks.release import ledger
from tasks.release.card import model_card
from tasks.release.targets import Target, open_target
from tasks.report import run_logger
from tasks.store import Store, open_store

OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS


@task(name="publish", task_run_name="publish", persist_result=False)
def publish(candidate: Candidate, seen: int, room: Room) -> LogEntry:
    """Publish a promoted candidate everywhere.

    Args:
        candidate: What the run made.
        seen: Number of the log's newest entry when the baseline was read.
        room: Where to work.

    Returns:
        The log entry that claimed the right to reveal it, its release with its publications.

    Raises:
        BaselineMoved: Another release was revealed meanwhile; nothing of this one is visible then.
        NoAccess, StorageFailed, HubFailed: A target failed; the next run goes on from there.
    """
    store = open_store(room.store)
    release = make_release(candidate, store)
    targets = open_targets(candidate.recipe)
    with _staged(release, targets, store) as folder:
        claim = ledger.claim(store, release, seen, room.run_name)
        return _reveal(claim, targets, folder)


@task(name="finish", task_run_name="finish what was begun", persist_result=False)
def finish(claim: LogEntry, room: Room) -> LogEntry:
    """Publish what an earlier run, that ended before its end, had claimed the right to reveal.

    Args:
        claim: The newest entry of the log, which no deployment followed.
        room: Where to work.

    Returns:
        The claim, its release with its publications.

    Raises:
        As `publish`.
    """
    store = open_store(room.store)
    release = claim.release
    targets = open_targets(Recipe.model_validate(provenance_of(release, store)["recipe"]))
    with _staged(release, targets, store) as folder:
        return _reveal(claim, targets, folder)


@task(name="complete", task_run_name="publish what is missing", persist_result=False)
def publish_missing(entry: LogEntry, recipe: Recipe, room: Room) -> tuple[Publication, ...]:
    """Bring the deployed release to targets that were named since it was made.

    Returns:
        The publications that were added.
    """
    store = open_store(room.store)
    missing = missing_targets(entry.release, recipe)
    with _staged(entry.release, missing, store) as folder:
        return _reveal(entry, missing, folder).release.publications


@contextlib.contextmanager
def _staged(release: Release, targets: list[Target], store: Store) -> Iterator[Path]:
    """The release's files in a folder, and staged at every target."""
    with store.scratch() as scratch:
        folder = release_folder(release, store, scratch / "release")
        for target in targets:
            target.stage(release, folder)
        yield folder


def _reveal(entry: LogEntry, targets: list[Target], folder: Path) -> LogEntry:
    release = entry.release
    shown = tuple(target.reveal(release, folder, entry.number) for target in targets)
    for publication in shown:
        run_logger().info("published version %s at %s", release.version, publication.uri)
    released = release.model_copy(update={"publications": shown})
    return entry.model_copy(update={"release": released})


def restore(release: Release, store: Store, private: bool) -> None:
    """Bring a release's model back into the store from where it was published, if the store lost
    it: it may be the baseline, whose data are long gone.

    Raises:
        StorageFailed: No publication has those bytes any more.
    """
    if store.holds(release.artifact):
        return
    for publication in release.publications:
        with store.scratch() as scratch, contextlib.suppress(BurnishError):
            folder = scratch / "model"
            folder.mkdir()
            open_target(publication.target, private).fetch(release, folder)
            (folder / "README.md").unlink(missing_ok=True)
            if store.put("model", folder).digest == release.digest:
                run_logger().info("restored version %s from %s", release.version, publication.uri)
                return
    raise StorageFailed(
        f"release {release.name} {release.version}",
        "no whole copy, neither in the store nor where it was published",
        "the deployed model, to compare the candidate with",
        "bring its files back to one of its places, or announce another release",
    )


def missing_targets(release: Release, recipe: Recipe) -> list[Target]:
    """Targets of the recipe where the release is not revealed."""
    return [target for target in open_targets(recipe) if not target.holds(release)]


def open_targets(recipe: Recipe) -> list[Target]:
    """The recipe's targets."""
    return [open_target(uri, recipe.publish.private) for uri in recipe.publish.targets]


def make_release(candidate: Candidate, store: Store) -> Release:
    """The release of a candidate, with its provenance stored."""
    digest = candidate.finetuned.artifact.digest
    with store.scratch() as scratch:
        folder = scratch / "provenance"
        (folder / "card").mkdir(parents=True)
        described = provenance(candidate, store)
        (folder / "provenance.json").write_bytes(orjson.dumps(described, option=OPTIONS))
        (folder / "card" / "README.md").write_text(model_card(candidate))
        shutil.copy(store.file(candidate.loaded.artifact, "seen.npy"), folder)
        artifact = store.put("provenance", folder)
    return Release(
        name=candidate.recipe.name,
        channel=candidate.recipe.announce.channel,
        version=digest[:VERSION_DIGITS],
        digest=digest,
        artifact=candidate.finetuned.artifact,
        provenance=artifact,
    )


def provenance(candidate: Candidate, store: Store) -> dict:
    """All that is needed to make the release again: recipe, data, code and library versions.

    What only some recipes ask for (a GGUF base, a guard set, a judge, the harness) is there where
    it was asked for.
    """
    guard = candidate.guard
    steps: dict[str, StepResult | None] = {
        "load": candidate.loaded,
        "unpack": candidate.unpacked,
        "examine": candidate.inspected,
        "guard": guard.loaded if guard else None,
        "tokenize": candidate.tokenized,
        "finetune": candidate.finetuned,
        "evaluate": candidate.scored,
        "compare": candidate.compared,
        "harness": candidate.harness,
        "harness_baseline": candidate.harness_baseline,
        "guard_evaluate": candidate.guard_scored,
        "guard_baseline": candidate.guard_baseline,
        "gate": candidate.judged,
    }
    # The files of a source are named by its digest; a list of thousands belongs to no page.
    sources = {
        "data": candidate.data,
        "model": candidate.model,
        "guard": guard.source if guard else None,
        "harness_folder": candidate.harness_folder,
    }
    return {
        "schema_version": 1,
        "recipe": candidate.recipe.model_dump(mode="json"),
        "recipe_digest": candidate.recipe.digest,
        "plan": candidate.plan.model_dump(mode="json"),
        "sources": {
            name: source.model_dump(mode="json", include={"uri", "pinned", "digest"})
            for name, source in sources.items()
            if source
        },
        "steps": {
            name: {
                "key": result.key,
                "artifact": result.artifact.digest,
                "made": result.made.model_dump(mode="json") if result.made else None,
            }
            for name, result in steps.items()
            if result
        },
        "data_report": data_report(candidate.loaded, store),
        "metrics": candidate.scored.metrics,
        "baseline_metrics": candidate.baseline.metrics if candidate.baseline else {},
        **_beside(candidate),
        "verdict": candidate.judged.verdict.model_dump(mode="json"),
    }


def _beside(candidate: Candidate) -> dict:
    """What was found beside the test examples' metrics, of what was asked for."""
    found: dict = {}
    if candidate.compared:
        found["comparisons"] = candidate.compared.model_dump(
            mode="json", exclude={"artifact", "key", "made", "schema_version"}
        )
    if candidate.harness:
        found["harness"] = candidate.harness.results
    if candidate.harness_baseline:
        found["baseline_harness"] = candidate.harness_baseline.results
    if candidate.guard_scored:
        found["guard_metrics"] = candidate.guard_scored.metrics
    if candidate.guard_baseline:
        found["baseline_guard_metrics"] = candidate.guard_baseline.metrics
    return found


def provenance_of(release: Release, store: Store) -> dict:
    """What `provenance` said when the release was made."""
    return orjson.loads(store.file(release.provenance, "provenance.json").read_bytes())


def data_report(loaded: Loaded, store: Store) -> dict:
    """The data report that the load step made."""
    return orjson.loads(store.file(loaded.artifact, "report.json").read_bytes())


def release_folder(release: Release, store: Store, folder: Path) -> Path:
    """The files of a release: the model's, and its card."""
    copy_files(store.open(release.artifact), folder)
    copy_files(store.open(release.provenance) / "card", folder)
    return folder


def copy_files(source: Path, target: Path) -> None:
    """Copy a folder's files into another, which may exist."""
    shutil.copytree(source, target, dirs_exist_ok=True)
