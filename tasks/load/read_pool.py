"""A pool of processes that read chunks."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from tasks.contracts.artifacts import SourceFile
from tasks.contracts.errors import OutOfHostMemory
from tasks.load.read_settings import Job
from tasks.load.shards import read_chunk
from tasks.runtime.logs import run_logger

# Processes take one or two seconds to start, in which 100,000 short texts can be read without.
_POOL_BYTES = 24 << 20
_WAITING_BYTES = 16 << 20
_WORKERS = 2


@dataclass
class Todo:
    """A piece that must be read, or is being read."""

    job: Job
    key: str
    files: tuple[SourceFile, ...]
    future: Future[list[Path]] | None = None


class Pool:
    """Reads pieces: the first ones in this process, then in processes of their own."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._seen = self._waiting = 0
        self._works = False

    def __enter__(self) -> Pool:
        return self

    def add(self, todo: Todo) -> None:
        """Take a piece on; it may start at once."""
        self._seen += todo.job.piece.size
        self._waiting += todo.job.piece.size
        if self._pool is None and self._seen >= _POOL_BYTES:
            self._pool = ProcessPoolExecutor(
                _WORKERS,
                mp_context=get_context("spawn"),
                initializer=_end_with,
                initargs=(os.getpid(),),
            )
        if self._pool is not None:
            with contextlib.suppress(BrokenProcessPool):
                todo.future = self._pool.submit(read_chunk, todo.job)

    @property
    def is_full(self) -> bool:
        """Whether so much is under way that results should be taken first."""
        return self._waiting >= (_WAITING_BYTES if self._pool else 1)

    def result(self, todo: Todo) -> list[Path]:
        """The shards of a piece.

        Raises:
            BadData: As `read_chunk`.
            OutOfHostMemory: Its process was killed.
        """
        self._waiting -= todo.job.piece.size
        if todo.future is None:
            return read_chunk(todo.job)
        try:
            folders = todo.future.result()
            self._works = True
            return folders
        except BrokenProcessPool:
            if not self._works:
                # Processes that never start: the calling script has no `if __name__` guard.
                run_logger().warning(
                    "Reading processes do not start; reading %s here", todo.job.name
                )
                return _read_anew(todo.job)
            raise OutOfHostMemory(
                f"reading {todo.job.name}",
                "a reading process that was killed, probably for want of memory",
                "to read the data",
                "give the worker more memory",
            ) from None

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _read_anew(job: Job) -> list[Path]:
    shutil.rmtree(job.out)
    os.mkdir(job.out)
    return read_chunk(job)


def _end_with(parent: int) -> None:
    """In a reading process: end when the parent does, even if that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
