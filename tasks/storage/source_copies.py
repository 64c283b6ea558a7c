"""Copies of sources in the store, for workers that cannot reach the files themselves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tasks.contracts.artifacts import Artifact, FileEntry, Source
from tasks.contracts.base import Contract
from tasks.storage.store import Store, manifest_digest

KIND = "source"

AnyContract = TypeVar("AnyContract", bound=Contract)


def with_stored_copies(inputs: AnyContract, store: Store) -> AnyContract:
    """Inputs whose local sources have a copy in the store. What a worker can fetch by itself, from
    S3 or the Hub, is not copied.

    Raises:
        StorageFailed, NoAccess: The store cannot be written, or a file not be read.
    """
    return _map_sources(inputs, lambda source: _with_copy(source, store))


def from_stored_copies(inputs: AnyContract, store: Store) -> AnyContract:
    """Inputs whose sources are read from their copies in the store.

    Raises:
        DamagedArtifact: A copy is not what was put there.
    """
    return _map_sources(inputs, lambda source: _from_copy(source, store))


def _with_copy(source: Source, store: Store) -> Source:
    if any("://" in file.location for file in source.files):
        return source
    root = store.uri + os.sep
    if all(file.location.startswith(root) for file in source.files):
        return source  # Both sides share this folder.
    entries = sorted(
        (FileEntry(path=file.path, size=file.size, sha256=file.digest) for file in source.files),
        key=lambda entry: entry.path,
    )
    digest = manifest_digest(entries)
    copy = Artifact(
        kind=KIND,
        digest=digest,
        files=len(entries),
        bytes=sum(entry.size for entry in entries),
        uri=f"{store.uri}/artifacts/{KIND}/{digest}",
    )
    if not store.holds(copy):
        with store.scratch() as scratch:
            for file in source.files:
                _copy(Path(file.location), scratch / "files" / file.path)
            copy = store.put(KIND, scratch / "files")
    return source.model_copy(update={"stored_copy": copy})


def _from_copy(source: Source, store: Store) -> Source:
    if source.stored_copy is None:
        return source
    folder = store.open(source.stored_copy)
    files = tuple(
        file.model_copy(update={"location": str(folder / file.path)}) for file in source.files
    )
    return source.model_copy(update={"files": files})


def _copy(file: Path, target: Path) -> None:
    # Not a link: an artifact must not change if its original is written to.
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _map_sources(value: Any, change: Callable[[Source], Source]) -> Any:
    if isinstance(value, Source):
        return change(value)
    if not isinstance(value, Contract):
        return value
    changes = {
        name: _map_sources(getattr(value, name), change)
        for name in type(value).model_fields
        if isinstance(getattr(value, name), Contract)
    }
    return value.model_copy(update=changes)
