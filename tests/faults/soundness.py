"""Whether a place is as after a run that nobody disturbed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts.artifacts import Artifact
from tasks.release import deployment_log
from tasks.storage.objects import open_objects
from tasks.storage.store import Store
from tests.flows.conftest import Place

NAME = "tiny"
"""Of the model."""


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody killed: what all trials must end with.

    Attributes:
        weights: Digest of the model.
        release: Digest of the release.
        writes: Its writes to the store and the targets.
        steps: Of its training.
        seconds: How long it took.
        checkpoints: How many it saved.
    """

    weights: str
    release: str
    writes: int
    steps: int
    seconds: float
    checkpoints: int


def problems_of(place: Place, expected: Undisturbed) -> list[str]:
    """What is not as after an undisturbed run: other weights; not one release, one entry, one
    event and its delivery; a store with damaged artifacts; checkpoints and staged files that were
    left; files of a release that its manifest does not list."""
    found = []

    def check(right: bool, problem: str) -> None:
        if not right:
            found.append(problem)

    store = place.store
    records = list((place.folder / "store" / "keys" / "finetune").glob("*.json"))
    weights = {json.loads(record.read_text())["artifact"]["digest"] for record in records}
    check(weights == {expected.weights}, f"weights {weights}")
    entries = deployment_log.entries(store, NAME, "production")
    deployed = [entry for entry in entries if entry.kind == "deployed"]
    check(len(deployed) == 1, f"{len(deployed)} deployed entries")
    check({e.release.digest for e in entries} == {expected.release}, "another release")
    for entry in deployed:
        marker = place.folder / "store" / "deliveries" / entry.event.id / "prefect"
        check(marker.is_file(), "the event was not delivered")
        check(len(entry.release.publications) == 1, "not one publication")
        folder = Path(entry.release.publications[0].uri)
        manifest = json.loads((folder / "manifest.json").read_text())
        listed = {file["path"]: file["sha256"] for file in manifest["files"]}
        there = {path.name: _sha256(path) for path in folder.iterdir()}
        there.pop("manifest.json")
        check(listed == there, f"the release's files: {sorted(listed)}, found {sorted(there)}")
        versions = [path for path in folder.parent.iterdir() if path.name != "latest"]
        check(len(versions) == 1, f"{len(versions)} releases at the target")
    check(len(list((place.folder / "store" / "deliveries").glob("*/*"))) == 1, "not one delivery")
    found += damaged_artifacts(store)
    left = [path for path in store.objects.sizes("") if "checkpoint" in path]
    check(not left, f"checkpoints left: {left[:3]}")
    staged = left_behind(place.folder)
    check(not staged, f"left behind: {staged[:3]}")
    return found


def left_behind(folder: Path) -> list[str]:
    """Files that a killed process was writing or working on."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file()
        and (path.parent.name == ".staging" or "scratch" in path.parts)
        and path.name != "lock"
    ]


def damaged_artifacts(store: Store) -> list[str]:
    """Artifacts that say that they are complete, and are not."""
    problems = []
    for path in store.objects.sizes("artifacts/"):
        _, kind, digest, *rest = path.split("/")
        if rest == ["manifest.json"]:
            try:
                Store(open_objects(store.uri)).open(
                    Artifact(kind=kind, digest=digest, files=0, bytes=0, uri="")
                )
            except Exception as error:
                problems.append(f"{path}: {error}")
    return problems


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
