"""The artifact store: content-addressed artifacts in a folder or under an S3 prefix.

artifacts/<kind>/<digest>/manifest.json   written last: its existence makes the artifact complete
artifacts/<kind>/<digest>/files/…         the files themselves
keys/<step>/<key>.json                    the record that the step with this key is done
logs/<model>/<channel>/<number>.json      what was deployed
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from tasks.contracts.artifacts import Artifact, FileEntry, Manifest
from tasks.contracts.base import digest_of
from tasks.contracts.errors import DamagedArtifact, NotFound
from tasks.storage.artifact_cache import ArtifactCache, open_cache
from tasks.storage.folders import file_sha256, scratch_folder, sweep_scratch
from tasks.storage.objects import FolderObjects, Objects, open_objects

# Written often, and hardly ever read.
_NOT_CACHED = ("checkpoint",)


def default_store() -> str:
    """Return the URI of the store used if a recipe names none."""
    return os.environ.get("BURNISH_STORE") or str(Path(".burnish").resolve())


@functools.cache
def open_store(uri: str) -> Store:
    """Return the store at a folder or `s3://bucket/prefix`; one instance per process."""
    return Store(open_objects(uri))


class Store:
    """Artifacts by digest, and small JSON records."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._verified: dict[str, Path] = {}

    @property
    def uri(self) -> str:
        """The store's root."""
        return self.objects.root

    def put(
        self, kind: str, folder: Path, announce: Callable[[Artifact], None] | None = None
    ) -> Artifact:
        """Store a folder's files as an artifact; the files may be moved out of the folder.

        The manifest is written last, so a crash never leaves an artifact that looks complete. An
        artifact that exists is not written again.

        Args:
            kind: The kind of artifact.
            folder: The files.
            announce: Called with the artifact before anything of it is written.

        Raises:
            StorageFailed, NoAccess: The store is not writable.
        """
        entries = list_files(folder)
        digest = manifest_digest(entries)
        artifact = Artifact(
            kind=kind,
            digest=digest,
            files=len(entries),
            bytes=sum(entry.size for entry in entries),
            uri=f"{self.uri}/{_path(kind, digest)}",
        )
        if announce:
            announce(artifact)
        if self.holds(artifact):
            return artifact
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda entry: self.objects.upload(
                        f"{_path(kind, digest)}/files/{entry.path}", folder / entry.path
                    ),
                    entries,
                )
            )
        self.write_manifest(kind, digest, entries)
        if self._cache and kind not in _NOT_CACHED:
            self._cache.add(digest, lambda entry: _link_files(folder, entry))
        return artifact

    def write_manifest(self, kind: str, digest: str, entries: list[FileEntry]) -> None:
        """Declare an artifact complete, whose files are all stored."""
        manifest = Manifest(kind=kind, digest=digest, files=tuple(entries))
        self.objects.write(
            f"{_path(kind, digest)}/manifest.json", manifest.model_dump_json(indent=1).encode()
        )

    def manifest(self, artifact: Artifact) -> Manifest:
        """Return an artifact's manifest.

        Raises:
            DamagedArtifact: The manifest is missing, unreadable, or of another artifact.
        """
        found = self.objects.read(f"{_path(artifact.kind, artifact.digest)}/manifest.json")
        if found is None:
            raise DamagedArtifact(artifact.kind, artifact.digest, "no manifest")
        try:
            manifest = Manifest.model_validate_json(found[0])
        except ValueError:
            raise DamagedArtifact(
                artifact.kind, artifact.digest, "an unreadable manifest"
            ) from None
        if manifest_digest(list(manifest.files)) != artifact.digest:
            raise DamagedArtifact(artifact.kind, artifact.digest, "another artifact's manifest")
        return manifest

    def holds(self, artifact: Artifact) -> bool:
        """Whether the artifact is complete: its manifest exists, and every file has its size."""
        try:
            manifest = self.manifest(artifact)
        except DamagedArtifact:
            return False
        home = f"{_path(artifact.kind, artifact.digest)}/files/"
        sizes = self.objects.sizes(home)
        return all(sizes.get(home + entry.path) == entry.size for entry in manifest.files)

    def open(self, artifact: Artifact) -> Path:
        """Return a local folder with the artifact's files, verified by their hashes.

        Raises:
            DamagedArtifact: A file is missing or was changed.
        """
        if artifact.digest not in self._verified:
            self._verified[artifact.digest] = self._complete(artifact, self.manifest(artifact))
        return self._verified[artifact.digest]

    def file(self, artifact: Artifact, path: str) -> Path:
        """Return one file of an artifact, verified by its hash, without fetching the others.

        Raises:
            DamagedArtifact: The file is missing or was changed.
        """
        if artifact.digest in self._verified:
            return self._verified[artifact.digest] / path
        manifest = self.manifest(artifact)
        only = tuple(entry for entry in manifest.files if entry.path == path)
        if not only:
            raise DamagedArtifact(artifact.kind, artifact.digest, f"no file {path}")
        return self._fetch(artifact, manifest.model_copy(update={"files": only})) / path

    def _complete(self, artifact: Artifact, manifest: Manifest) -> Path:
        """All of an artifact, from this machine's cache if there is one and it is there."""
        digest = artifact.digest
        if self._cache is None:
            return self._fetch(artifact, manifest)
        if cached := self._cache.get(digest):
            with contextlib.suppress(DamagedArtifact):
                _verify(artifact, manifest, cached)
                return cached
            self._cache.remove(digest)

        def fill(folder: Path) -> None:
            self._download(artifact, manifest, folder)
            _verify(artifact, manifest, folder)

        return self._cache.add(digest, fill)

    def _fetch(self, artifact: Artifact, manifest: Manifest) -> Path:
        if isinstance(self.objects, FolderObjects):
            folder = Path(self.uri) / _path(artifact.kind, artifact.digest) / "files"
        else:
            folder = self._downloads / artifact.digest
            self._download(artifact, manifest, folder)
        _verify(artifact, manifest, folder)
        return folder

    def _download(self, artifact: Artifact, manifest: Manifest, folder: Path) -> None:
        home = f"{_path(artifact.kind, artifact.digest)}/files"
        for entry in manifest.files:
            file = folder / entry.path
            file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(NotFound):
                self.objects.download(f"{home}/{entry.path}", file)

    @functools.cached_property
    def _cache(self) -> ArtifactCache | None:
        return None if isinstance(self.objects, FolderObjects) else open_cache()

    @functools.cached_property
    def _downloads(self) -> Path:
        used = contextlib.ExitStack()
        folder = used.enter_context(self.scratch())
        # Also called when the process ends.
        weakref.finalize(self, used.close)
        return folder

    def discard(self, kind: str, digest: str) -> None:
        """Delete an artifact, manifest first, so that it is produced again when needed."""
        self._verified.pop(digest, None)
        self.objects.delete(f"{_path(kind, digest)}/manifest.json")
        for path in self.objects.sizes(f"{_path(kind, digest)}/"):
            self.objects.delete(path)

    def read_json(self, path: str) -> dict | None:
        """Return a small record; None if it does not exist or is not JSON."""
        found = self.objects.read(path)
        if found is None:
            return None
        try:
            return orjson.loads(found[0])
        except orjson.JSONDecodeError:
            return None

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """A temporary folder, on the store's own disk if it is local, so that finished files can be
        moved into place."""
        return scratch_folder(self.scratch_parent)

    @property
    def scratch_parent(self) -> Path:
        """The folder of all temporary folders on this machine."""
        if isinstance(self.objects, FolderObjects):
            return Path(self.uri) / "scratch"
        return _temporary_folders()


def sweep_machine() -> None:
    """Remove what killed runs have left in temporary folders of this machine, as a worker does
    when it starts."""
    parents = {_temporary_folders(), open_store(default_store()).scratch_parent}
    for parent in parents:
        sweep_scratch(parent)
    if cache := open_cache():
        cache.sweep()


def _temporary_folders() -> Path:
    return Path(tempfile.gettempdir()) / f"burnish-{os.getuid()}"


def _verify(artifact: Artifact, manifest: Manifest, folder: Path) -> None:
    for entry in manifest.files:
        file = folder / entry.path
        if not file.is_file():
            raise DamagedArtifact(artifact.kind, artifact.digest, f"no file {entry.path}")
        if file.stat().st_size != entry.size or file_sha256(file) != entry.sha256:
            raise DamagedArtifact(artifact.kind, artifact.digest, f"the changed file {entry.path}")


def _link_files(folder: Path, target: Path) -> None:
    def link(source: str, copy: str) -> None:
        try:
            os.link(source, copy)
        except OSError:  # Another disk.
            shutil.copyfile(source, copy)

    shutil.copytree(folder, target, copy_function=link, dirs_exist_ok=True)


def list_files(folder: Path) -> list[FileEntry]:
    """Return every file in a folder with size and SHA-256, sorted by relative path."""
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
    """Return an artifact's digest: SHA-256 over its sorted paths, sizes and hashes."""
    return digest_of(sorted([entry.path, entry.size, entry.sha256] for entry in entries))


def artifact_path(artifact: Artifact) -> str:
    """The path of an artifact's folder in its store."""
    return _path(artifact.kind, artifact.digest)


def _path(kind: str, digest: str) -> str:
    return f"artifacts/{kind}/{digest}"
