"""A worker's own copies of artifacts in a remote store, so that a 16 GB model is not downloaded by
each process that reads it.

`BURNISH_CACHE` names the folder; without it nothing is kept. An entry is a folder named by the
artifact's digest, put there by a rename, so it is complete or absent. Each process locks what it
uses; beyond `BURNISH_CACHE_GB`, what was not used for longest and is not in use goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tasks.storage.folders import scratch_folder, sweep_scratch

VARIABLE, SIZE_VARIABLE = "BURNISH_CACHE", "BURNISH_CACHE_GB"
_DEFAULT_GB = 50.0


class ArtifactCache:
    """Complete artifacts by digest, in a folder that several processes share.

    Args:
        folder: The folder; created if necessary.
        limit: Bytes that its entries may take together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        # Open files: closing one releases its lock.
        self._locks: dict[str, IO[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, digest: str) -> Path | None:
        """The folder of an artifact, which stays as long as this process lives; None if it is not
        there."""
        self._lock(digest)
        folder = self._folder / digest
        if not folder.is_dir():
            return None
        os.utime(folder)
        return folder

    def add(self, digest: str, fill: Callable[[Path], None]) -> Path:
        """Put an artifact there.

        Args:
            digest: Of the artifact.
            fill: Writes its files into an empty folder; what it raises is passed on.

        Returns:
            Its folder.
        """
        self._lock(digest)
        with self._scratch() as scratch:
            entry = scratch / "entry"
            entry.mkdir()
            fill(entry)
            # Another process may have been faster; then its copy stays.
            with contextlib.suppress(OSError):
                os.rename(entry, self._folder / digest)
        self._make_room()
        return self._folder / digest

    def remove(self, digest: str) -> None:
        """Remove an artifact, such as a damaged one, even if it is in use."""
        shutil.rmtree(self._folder / digest, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed processes have left half done."""
        sweep_scratch(self._folder / "scratch")

    def _lock(self, digest: str) -> None:
        if digest not in self._locks:
            file = open(self._lock_file(digest), "ab")  # noqa: SIM115
            fcntl.flock(file, fcntl.LOCK_SH)
            self._locks[digest] = file

    def _scratch(self) -> contextlib.AbstractContextManager[Path]:
        return scratch_folder(self._folder / "scratch")

    def _lock_file(self, digest: str) -> Path:
        return self._folder / f"{digest}.lock"

    def _make_room(self) -> None:
        entries = [each for each in self._folder.iterdir() if each.with_suffix(".lock").exists()]
        sizes = {each: _size(each) for each in entries if each.is_dir()}
        total = sum(sizes.values())
        for entry in sorted(sizes, key=_used):
            if total <= self._limit:
                return
            if self._forget(entry):
                total -= sizes[entry]

    def _forget(self, entry: Path) -> bool:
        """Remove an entry unless a process uses it."""
        with contextlib.suppress(OSError), open(self._lock_file(entry.name), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self._scratch() as scratch:
                # Renamed first: whoever asks now finds nothing rather than a part.
                entry.rename(scratch / "gone")
            return True
        return False


def open_cache() -> ArtifactCache | None:
    """The cache that the environment names; None if it names none."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    limit = float(os.environ.get(SIZE_VARIABLE) or _DEFAULT_GB)
    return ArtifactCache(Path(folder).expanduser(), round(limit * 10**9))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
