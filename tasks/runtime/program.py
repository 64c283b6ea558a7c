"""The program's side of the protocol between the flow and its programs.

A program gets one job file, and reports as JSON lines on its standard output:

    {"event": "progress", ...facts}
    {"event": "heartbeat", "counter": 7}
    {"event": "result", "result": {...}}
    {"event": "error", "error": {BurnishError.to_json()}}

Everything else that it or a library prints goes to standard error. It exits at the end of its
standard input: its parent is gone then, and an orphan would hold the GPU.
`tasks.runtime.run_program` is the parent's side. Importing this module imports no torch.

A program may run as several processes (`tasks.runtime.ranks_program`), which share these streams:
rank 0 reports progress and result, and each rank reports its own error.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from tasks.contracts.base import Contract
from tasks.contracts.errors import CodeFailed, describe, preempted
from tasks.contracts.jobs import Job, Result
from tasks.runtime import heartbeat, ranks

AnyJob = TypeVar("AnyJob", bound=Job)
AnyContract = TypeVar("AnyContract", bound=Contract)

PARENT_GONE = 75
"""Exit status of a program whose parent went away."""

_PROGRESS_SECONDS = 0.5
_PARENT_CHECK_SECONDS = 5.0


class Reporter:
    """Sends a program's messages to its parent.

    Attributes:
        stopping: Whether the program received a request to stop. Only set for a program that runs
            with `graceful=True`; others are interrupted.

    Args:
        stream: Descriptor of the parent's pipe.
        shared: If several ranks share the stream: a file that all of them can open, for locking.
    """

    def __init__(self, stream: int, shared: Path | None = None) -> None:
        self.stopping = False
        self._stream = stream
        self._lock_file = os.open(shared, os.O_RDONLY) if shared else None
        self._lock = threading.Lock()
        self._last = -_PROGRESS_SECONDS
        self._counter = 0

    def progress(self, *, always: bool = False, **facts: Any) -> bool:
        """Report progress.

        Args:
            always: Send it even if the last report was less than half a second ago.
            **facts: JSON values; NumPy scalars are converted, NaN becomes null.

        Returns:
            Whether it was sent. Only rank 0 sends progress.
        """
        self.advance()
        if ranks.rank() > 0:
            return False
        now = time.monotonic()
        if not always and now - self._last < _PROGRESS_SECONDS:
            return False
        self._last = now
        self.send({"event": "progress", **facts})
        return True

    def advance(self) -> None:
        """Show that the main thread goes on: a step, a batch or a stage is done."""
        self._counter += 1

    def beat(self, seconds: float) -> None:
        """Send a heartbeat every few seconds, from a thread; of several ranks, only rank 0."""

        def send() -> None:
            while True:
                time.sleep(seconds)
                with contextlib.suppress(OSError):
                    self.send({"event": "heartbeat", "counter": self._counter})

        if ranks.rank() == 0:
            threading.Thread(target=send, name="heartbeat", daemon=True).start()

    def check_stop(self) -> None:
        """Stop here if the program was asked to, without saving anything.

        Raises:
            Preempted: The program received a request to stop.
        """
        if self.stopping:
            raise preempted()

    def send(self, line: dict[str, Any]) -> None:
        """Write one line in one piece; any thread may call this."""
        data = orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
        with self._lock, self._exclusive():
            while data:
                data = data[os.write(self._stream, data) :]

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        # Short writes of several processes to a pipe are atomic; long ones are not.
        if self._lock_file is None:
            yield
            return
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)


def run(
    main: Callable[[AnyJob, Reporter], Result | None],
    job_type: type[AnyJob],
    graceful: bool = False,
) -> None:
    """Run a program: read its job, call `main`, report the result, and exit. Never returns.

    The exit status is 0 after a result, 1 after an error, and `PARENT_GONE` if the parent is gone.

    Args:
        main: Takes the job and a reporter, returns the result. A rank other than 0 may return None.
        job_type: The job's model.
        graceful: On SIGTERM, only set `Reporter.stopping`, so that `main` can save its work and
            then raise `Preempted`. Otherwise `Preempted` is raised at whatever it is doing.
    """
    if len(sys.argv) != 2:
        print("usage: python -m MODULE JOB.json", file=sys.stderr)
        os._exit(2)
    reporter = Reporter(_claim_stdout(), Path(sys.argv[1]) if ranks.count() > 1 else None)
    watch_parent(_claim_stdin())
    _handle_signals(reporter, graceful)
    reporter.beat(float(os.environ.get(heartbeat.VARIABLE, heartbeat.SECONDS)))
    status = 0
    try:
        data = orjson.loads(Path(sys.argv[1]).read_bytes())
        result = main(parse(job_type, data, f"job {Path(sys.argv[1]).name}"), reporter)
        if ranks.rank() == 0:
            reporter.send({"event": "result", "result": orjson.Fragment(result.model_dump_json())})
    except BaseException as problem:
        _ignore_signals()
        traceback.print_exc()
        reporter.send({"event": "error", "error": describe(problem).to_json()})
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a library that fails or hangs at exit must not affect what was reported.
    os._exit(status)


def parse(model: type[AnyContract], data: Any, where: str) -> AnyContract:
    """A job or a result, from the JSON values that the other process sent.

    Args:
        model: The job's or the result's model.
        data: JSON values.
        where: Its name in messages.

    Raises:
        CodeFailed: The data do not fit the model. The error names the first wrong field.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise CodeFailed(
            f"{where}, field {field}",
            f"{str(first['input'])[:200]!r}: {first['msg']}",
            f"a valid {model.__name__}",
            "this is a defect of the program or of what starts it: report it with the log",
        ) from None


def _claim_stdout() -> int:
    sys.stdout.flush()
    stream = os.dup(1)
    os.dup2(2, 1)
    return stream


def _claim_stdin() -> int:
    stream = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return stream


def watch_parent(stdin: int) -> None:
    """End this process when its parent ends.

    Args:
        stdin: A pipe that only the parent holds open at its other end.
    """
    parent = os.getppid()

    def watch() -> None:
        while True:
            # A process forked by the parent may hold the pipe open, so check the parent itself too.
            ready, _, _ = select.select([stdin], [], [], _PARENT_CHECK_SECONDS)
            if (ready and not _read(stdin)) or os.getppid() != parent:
                with contextlib.suppress(OSError):
                    os.write(2, b"the parent process is gone: this program exits\n")
                os._exit(PARENT_GONE)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _read(stream: int) -> bytes:
    try:
        return os.read(stream, 4096)
    except OSError:
        return b""


def _handle_signals(reporter: Reporter, graceful: bool) -> None:
    def stop(number: int, frame: Any) -> None:
        if graceful:
            reporter.stopping = True
        else:
            _ignore_signals()
            raise preempted()

    signal.signal(signal.SIGTERM, stop)
    # Ctrl-C reaches the whole process group: the parent decides, and sends SIGTERM.
    signal.signal(signal.SIGINT, stop)


def _ignore_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
