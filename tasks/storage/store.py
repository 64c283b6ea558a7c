"""Where artifacts live: a folder or an S3 prefix, addressed by digest.

artifacts/<kind>/<digest>/manifest.json   written last: with it, the artifact is complete
artifacts/<kind>/<digest>/files/…         the files themselves
keys/<step>/<key>.json                    the record that a key's work was done
logs/<model>/<channel>/<number>.json      what was deployed
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from tasks.contracts.artifacts import Artifact, FileEntry, Manifest
from tasks.contracts.base import digest_of
from tasks.contracts.errors import DamagedArtifact, NotFound
from tasks.storage.objects import FolderObjects, Objects, open_objects


def default_store() -> str:
    """The store's URI where a recipe names none."""
    return os.environ.get("BURNISH_STORE") or str(Path(".burnish").resolve())


@functools.cache
def open_store(uri: str) -> Store:
    """The store at a folder or `s3://bucket/prefix`; one instance a process."""
    return Store(open_objects(uri))


class Store:
    """Artifacts by digest, and small records beside them."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._verified: dict[str, Path] = {}

    @property
    def uri(self) -> str:
        """The store's root."""
        return self.objects.root

    def put(self, kind: str, folder: Path) -> Artifact:
        """Store a folder's files as an artifact. The files are moved out of the folder.

        The manifest is written last, so that a crash leaves nothing that looks complete. What is
        there already is not written again.

        Raises:
            StorageFailed, NoAccess: The store cannot be written.
        """
        entries = list_files(folder)
        digest = manifest_digest(entries)
        artifact = Artifact(
            kind=kind,
            digest=digest,
            files=len(entries),
            bytes=sum(entry.size for entry in entries),
            uri=f"{self.uri}/{_home(kind, digest)}",
        )
        if self.holds(artifact):
            return artifact
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda entry: self.objects.upload(
                        f"{_home(kind, digest)}/files/{entry.path}", folder / entry.path
                    ),
                    entries,
                )
            )
        manifest = Manifest(kind=kind, digest=digest, files=tuple(entries))
        self.objects.write(
            f"{_home(kind, digest)}/manifest.json", manifest.model_dump_json(indent=1).encode()
        )
        return artifact

    def manifest(self, artifact: Artifact) -> Manifest:
        """The artifact's list of files.

        Raises:
            DamagedArtifact: It has none, or one that is not its own.
        """
        found = self.objects.read(f"{_home(artifact.kind, artifact.digest)}/manifest.json")
        if found is None:
            raise DamagedArtifact(artifact.kind, artifact.digest, "no manifest")
        try:
            manifest = Manifest.model_validate_json(found[0])
        except ValueError:
            raise DamagedArtifact(
                artifact.kind, artifact.digest, "an unreadable manifest"
            ) from None
        if manifest_digest(list(manifest.files)) != artifact.digest:
            raise DamagedArtifact(artifact.kind, artifact.digest, "a manifest of something else")
        return manifest

    def holds(self, artifact: Artifact) -> bool:
        """Whether the artifact is complete: a manifest, and every file with its size."""
        try:
            manifest = self.manifest(artifact)
        except DamagedArtifact:
            return False
        home = f"{_home(artifact.kind, artifact.digest)}/files/"
        sizes = self.objects.sizes(home)
        return all(sizes.get(home + entry.path) == entry.size for entry in manifest.files)

    def open(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, each checked against its hash.

        Raises:
            DamagedArtifact: A file is missing or differs.
        """
        if artifact.digest not in self._verified:
            self._verified[artifact.digest] = self._fetch(artifact, self.manifest(artifact))
        return self._verified[artifact.digest]

    def file(self, artifact: Artifact, path: str) -> Path:
        """One file of an artifact, checked against its hash; the others are neither fetched nor
        read.

        Raises:
            DamagedArtifact: It is missing or differs.
        """
        if artifact.digest in self._verified:
            return self._verified[artifact.digest] / path
        manifest = self.manifest(artifact)
        only = tuple(entry for entry in manifest.files if entry.path == path)
        if not only:
            raise DamagedArtifact(artifact.kind, artifact.digest, f"no file {path}")
        return self._fetch(artifact, manifest.model_copy(update={"files": only})) / path

    def _fetch(self, artifact: Artifact, manifest: Manifest) -> Path:
        home = f"{_home(artifact.kind, artifact.digest)}/files"
        local = isinstance(self.objects, FolderObjects)
        folder = Path(self.uri) / home if local else Path(self._downloads.name) / artifact.digest
        for entry in manifest.files:
            file = folder / entry.path
            if not local:
                file.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(NotFound):
                    self.objects.download(f"{home}/{entry.path}", file)
            if not file.is_file():
                raise DamagedArtifact(artifact.kind, artifact.digest, f"no file {entry.path}")
            if file.stat().st_size != entry.size or file_sha256(file) != entry.sha256:
                raise DamagedArtifact(
                    artifact.kind, artifact.digest, f"a file {entry.path} that was changed"
                )
        return folder

    @functools.cached_property
    def _downloads(self) -> tempfile.TemporaryDirectory:
        return tempfile.TemporaryDirectory(prefix="burnish-")

    def discard(self, kind: str, digest: str) -> None:
        """Forget an artifact, manifest first, so that it is made again when it is needed."""
        self._verified.pop(digest, None)
        self.objects.delete(f"{_home(kind, digest)}/manifest.json")
        for path in self.objects.sizes(f"{_home(kind, digest)}/"):
            self.objects.delete(path)

    def read_json(self, path: str) -> dict | None:
        """A small record; None where there is none or it is not JSON."""
        found = self.objects.read(path)
        if found is None:
            return None
        try:
            return orjson.loads(found[0])
        except orjson.JSONDecodeError:
            return None

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder to work in, removed afterwards; on the store's own disk where it has one, so
        that finished files can be moved into place."""
        parent = Path(tempfile.gettempdir())
        if isinstance(self.objects, FolderObjects):
            parent = Path(self.uri) / "scratch"
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
        folder = parent / f"work-{uuid.uuid4().hex}"
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Only now: another run's sweep may have held the lock until here.
            folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(lock.name)


def _sweep(scratch: Path) -> None:
    """Remove what killed runs left behind: the system has dropped their locks."""
    for path in scratch.glob("work-*.lock"):
        with contextlib.suppress(OSError), open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()


def list_files(folder: Path) -> list[FileEntry]:
    """Every file below a folder, by sorted relative path, with size and SHA-256."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=file_sha256(path),
        )
        for path in paths
    ]
    return sorted(entries, key=lambda entry: entry.path)


def manifest_digest(entries: list[FileEntry]) -> str:
    """The digest that names an artifact: SHA-256 over its sorted paths, sizes and hashes."""
    return digest_of(sorted([entry.path, entry.size, entry.sha256] for entry in entries))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in flat memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _home(kind: str, digest: str) -> str:
    return f"artifacts/{kind}/{digest}"
