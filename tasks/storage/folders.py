"""Local folders that several processes write to: durable writes, locks, and scratch folders.

A promise (a manifest, a record, a log entry) must survive a power cut, so files and the folders
that name them are flushed to disk. What a killed process left behind is recognized by its lock,
which the operating system has released, and removed by the next process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts.errors import NoAccess, StorageFailed


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, and flush their names to disk."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file's bytes, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename a file whose bytes are on disk, and flush the new name."""
    os.replace(source, target)
    flush(target.parent)


@contextlib.contextmanager
def locked(path: Path, keep: bool) -> Iterator[None]:
    """Hold a file's lock; the file is created if necessary.

    Args:
        path: The file.
        keep: Whether the file stays. If not, nobody else may wait for this lock: a waiter would get
            the lock of a removed file, while a third process locks a new one.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # `sweep` removed the file before it was locked.
    try:
        yield
    finally:
        if not keep:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        os.close(descriptor)


def sweep(folder: Path, pattern: str) -> None:
    """Remove the files that match a pattern and that no process has locked, and the folders of the
    same names without their suffix."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.suffix:
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


def sweep_scratch(parent: Path) -> None:
    """Remove the temporary folders of killed processes."""
    sweep(parent, "work-*.lock")


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder. Those of killed processes are removed.

    Args:
        parent: The folder for all of them; it is created if necessary.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep_scratch(parent)
    folder = parent / f"work-{uuid.uuid4().hex}"
    with locked(parent / f"{folder.name}.lock", keep=False):
        # Created under the lock: a concurrent sweep would remove it.
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def write_errors(where: Path, size: int) -> Iterator[None]:
    """Raise errors of the file system as typed errors.

    Args:
        where: What is written.
        size: Its bytes.

    Raises:
        NoAccess: This user may not write there.
        StorageFailed: The disk is full, or failed.
    """
    try:
        yield
    except PermissionError as error:
        raise NoAccess(
            str(error.filename or where),
            "no permission to write",
            "a folder that this user can write to",
            "change its permissions, or use another folder",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(where, size) from error
        raise StorageFailed(
            str(error.filename or where),
            str(error.strerror),
            "a writable folder",
            "check the disk and its mount",
        ) from error


def require_space(folder: Path, size: int) -> None:
    """Check that a folder's disk has room for so many bytes.

    Raises:
        StorageFailed: It has not.
    """
    if shutil.disk_usage(folder).free < size:
        raise disk_full(folder, size)


def disk_full(where: Path, size: int) -> StorageFailed:
    """The error for a disk without room for so many bytes."""
    existing = next(folder for folder in (where, *where.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    return StorageFailed(
        str(where),
        f"no disk space: {free / 1e6:,.1f} MB free",
        f"room for {size / 1e6:,.1f} MB",
        "free some space on that disk, or use another one",
    )
