"""A pool of processes that read chunks in parallel."""

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
from tasks.load.read_settings import ReadJob
from tasks.load.shards import read_chunk
from tasks.runtime.logs import run_logger

IN_PROCESS_BYTES = 24 << 20
"""Data up to this size are read in this process: starting processes takes one to two seconds, in
which one process reads about 100,000 short texts."""
QUEUE_BYTES = 16 << 20
"""Size of the chunks that may be queued in the pool before results are collected."""
_WORKERS = 2


@dataclass
class PendingRead:
    """A chunk that has to be read.

    Attributes:
        job: The job.
        key: The cache key of its shards.
        files: For text folders: the chunk's files.
        future: Its result, if the pool reads it.
    """

    job: ReadJob
    key: str
    files: tuple[SourceFile, ...]
    future: Future[list[Path]] | None = None


class ReadPool:
    """Reads the first chunks in this process, and later ones in worker processes."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._total_bytes = self._queued_bytes = 0
        self._pool_works = False

    def __enter__(self) -> ReadPool:
        return self

    def submit(self, pending: PendingRead) -> None:
        """Queue a chunk; a worker process may start to read it."""
        self._total_bytes += pending.job.chunk.size
        self._queued_bytes += pending.job.chunk.size
        if self._pool is None and self._total_bytes >= IN_PROCESS_BYTES:
            self._pool = ProcessPoolExecutor(
                _WORKERS,
                mp_context=get_context("spawn"),
                initializer=exit_with_parent,
                initargs=(os.getpid(),),
            )
        if self._pool is not None:
            with contextlib.suppress(BrokenProcessPool):
                pending.future = self._pool.submit(read_chunk, pending.job)

    @property
    def is_full(self) -> bool:
        """Whether results should be collected before more chunks are submitted."""
        return self._queued_bytes >= (QUEUE_BYTES if self._pool else 1)

    def result(self, pending: PendingRead) -> list[Path]:
        """Return the folders of a chunk's shards.

        Raises:
            BadData: As for `read_chunk`.
            OutOfHostMemory: The worker process was killed.
        """
        self._queued_bytes -= pending.job.chunk.size
        if pending.future is None:
            return read_chunk(pending.job)
        try:
            folders = pending.future.result()
            self._pool_works = True
            return folders
        except BrokenProcessPool:
            name = pending.job.name
            if not self._pool_works:
                # Workers cannot start if the calling script has no `if __name__` guard.
                run_logger().warning("Reader processes cannot start; reading %s in-process", name)
                return _reread(pending.job)
            raise OutOfHostMemory(
                f"reading {name}",
                "a reader process that was killed, probably because memory ran out",
                "enough memory to read the data",
                "give the worker more memory",
            ) from None

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _reread(job: ReadJob) -> list[Path]:
    shutil.rmtree(job.out)
    os.mkdir(job.out)
    return read_chunk(job)


def exit_with_parent(parent: int) -> None:
    """Initialize a worker process: make it exit when its parent does, even if that was killed.

    Args:
        parent: The parent's process id.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
