"""Caches the SHA-256 of local files, so that unchanged files are not read again."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from tasks.storage.folders import file_sha256

# A file modified more recently could be modified again without a newer time stamp.
_MIN_AGE_SECONDS = 2.0


class DigestCache:
    """SHA-256 of local files by path, size, modification time and inode; a context manager."""

    def __init__(self) -> None:
        self._known: dict[tuple, str] = {}
        self._new: dict[tuple, str] = {}
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> DigestCache:
        # Without a writable cache folder, files are read each time.
        with contextlib.suppress(OSError, sqlite3.Error):
            home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
            folder = Path(home).expanduser() / "burnish"
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(folder / "digests.sqlite", timeout=5)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, size INTEGER, "
                "mtime_ns INTEGER, inode INTEGER, sha256 TEXT)"
            )
            rows = self._database.execute("SELECT path, size, mtime_ns, inode, sha256 FROM digests")
            self._known = {tuple(row[:4]): row[4] for row in rows}
        return self

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes.

        Raises:
            OSError: The file cannot be read.
        """
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if key in self._known:
            return self._known[key]
        digest = file_sha256(path)
        if time.time() - stat.st_mtime > _MIN_AGE_SECONDS:
            self._new[key] = digest
        return digest

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._database is not None:
                rows = [(*key, digest) for key, digest in self._new.items()]
                self._database.executemany("REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", rows)
                self._database.commit()
                self._database.close()
