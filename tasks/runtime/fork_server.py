"""Programs forked off a process that has loaded their libraries: the parent's side of
`tasks.runtime.fork_server_program`.

A fresh process spends seconds of a core on the import of torch and transformers, and a run starts
five of them. Here one process, the host, imports them once, and each program is a fork of it. Where
that cannot be, programs are fresh processes: without Linux, with a GPU (a library may touch CUDA
when it is imported, and CUDA does not survive a fork), or with `BURNISH_PROGRAM_HOST=off` in the
environment, which also helps with debugging.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tasks.runtime.hardware import has_gpu

_MODELS = (
    "numpy",
    "orjson",
    "pyarrow.compute",
    "pyarrow.parquet",
    "torch",
    "safetensors.torch",
    "transformers.models.auto.tokenization_auto",
    # Its imports are nearly all that other architectures have, too.
    "transformers.models.bert.modeling_bert",
)
_TRAINING = ("bitsandbytes", "sklearn.metrics", "peft", "evaluate", "transformers.trainer")
LIBRARIES = {
    "tasks.base_model.gguf_program": _MODELS,
    "tasks.base_model.inspect_program": _MODELS,
    "tasks.tokenize.classification_program": _MODELS,
    "tasks.tokenize.language_program": _MODELS,
    # It goes through a step of training, and that follows it.
    "tasks.plan.forecast_program": (*_MODELS, *_TRAINING),
    "tasks.finetune.gguf_export_program": _MODELS,
    "tasks.finetune.program": (*_MODELS, *_TRAINING),
    "tasks.evaluate.classification_program": _MODELS,
    "tasks.evaluate.language_program": _MODELS,
    # lm_eval itself is imported by it alone: few runs need that.
    "tasks.evaluate.benchmark_program": (*_MODELS, *_TRAINING),
}
"""What must be imported before a program is forked. The host knows no other modules: ours are
imported by each program itself. On two cores, with a host that has loaded them, these took 0.3 to 2
seconds for a tiny model in place of 4 to 9; a program that is forked before they are there imports
them once more than the host does, and took longer than a fresh process."""

FRESH = frozenset({"tasks.evaluate.benchmark_check_program"})
"""Programs that need none of it: fresh they took 2 seconds, and 5 behind the host's first imports.
It comes first in a run, which may end without any other program."""

_SECONDS_BETWEEN_LOOKS = 0.5
# The first changes with each test; the others are set by scikit-learn when it is imported, which
# may be at any time, and each program that imports it sets them too.
_NOT_COMPARED = {"PYTEST_CURRENT_TEST", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}


class ForkServer:
    """A host process. It ends when its socket does: with `close`, or with this process.

    Attributes:
        environment: What it was started with. Libraries read variables when they are imported, so
            that its programs can have no other.
        process: For its end.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._jobs, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        libraries = dict.fromkeys(name for names in LIBRARIES.values() for name in names)
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "tasks.runtime.fork_server_program",
                    str(os.getpid()),
                    *libraries,
                ],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )

    def send(self, module: str, job_file: Path, fds: list[int]) -> None:
        """Give it a job, with the program's standard streams and status socket."""
        job = {
            "module": module,
            "job_file": str(job_file),
            "cwd": os.getcwd(),
            "needs": LIBRARIES.get(module, ()),
        }
        socket.send_fds(self._jobs, [json.dumps(job).encode()], fds)

    def close(self) -> None:
        """Give it no more jobs: it ends with the last of its programs."""
        self._jobs.close()


class ForkedProgram:
    """A program that the host forks; like a `subprocess.Popen`, as far as `run_program` needs it.

    Attributes:
        pid: None until it was forked.
        returncode: As of `Popen`. Of a program whose host died, the host's.
        stdin, stdout: This process's ends of its pipes.
    """

    def __init__(self, host: ForkServer, module: str, job_file: Path, stderr: int) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None
        self._host, self._module, self._pidfd = host, module, -1
        with contextlib.ExitStack() as theirs:
            stdin, written = os.pipe()
            theirs.callback(os.close, stdin)
            self.stdin = open(written, "wb", buffering=0)  # noqa: SIM115
            read, stdout = os.pipe()
            theirs.callback(os.close, stdout)
            self.stdout = open(read, "rb", buffering=0)  # noqa: SIM115
            self._status, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.enter_context(status)
            host.send(module, job_file, [stdin, stdout, stderr, status.fileno()])

    def poll(self) -> int | None:
        """Its return code, if it has ended."""
        while self.returncode is None and self._listen(0.0):
            pass
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It has not come.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = _SECONDS_BETWEEN_LOOKS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(self._module, timeout)
            # Short waits: an exception that is set on this thread only fires between them.
            self._listen(min(left, _SECONDS_BETWEEN_LOOKS))
        return self.returncode

    def terminate(self) -> None:
        """Ask it to stop."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is not None:
            return
        if self.pid is None:
            # The host, busy with imports, will find nobody listening, and not begin.
            self._finish(-number)
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _listen(self, timeout: float) -> bool:
        """Take one message of the host, if one comes in time."""
        try:
            self._status.settimeout(timeout)
            message, fds, *_ = socket.recv_fds(self._status, 64, 1)
        except (BlockingIOError, TimeoutError):
            return False
        except ConnectionError:
            message, fds = b"", []
        if fds:
            self.pid, self._pidfd = int(message), fds[0]
        elif message:
            self._finish(os.waitstatus_to_exitcode(int(message)))
        else:
            self._bereft()
        return True

    def _bereft(self) -> None:
        """The host has died, or could not fork: the program must not outlive that."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            ended.poll()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._host.process.wait(1.0)
        self._finish(self._host.process.returncode or 1)

    def _finish(self, code: int) -> None:
        self.returncode = code
        self._status.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)


_host: ForkServer | None = None
_lock = threading.Lock()


def start(
    module: str, job_file: Path, stderr: int, environment: dict[str, str]
) -> ForkedProgram | None:
    """Have a program forked, without waiting for it.

    Args:
        module: The program's module.
        job_file: Its argument.
        stderr: A descriptor for its standard error.
        environment: Its environment; another one than before needs another host.

    Returns:
        The program; None where it must be a fresh process.
    """
    if module in FRESH:
        return None
    with _lock, contextlib.suppress(OSError):
        if host := _running(environment):
            return ForkedProgram(host, module, job_file, stderr)
    return None


def preload(environment: dict[str, str]) -> None:
    """Start the host, if there can be one, without waiting for it."""
    with _lock, contextlib.suppress(OSError):
        _running(environment)


def _running(environment: dict[str, str]) -> ForkServer | None:
    global _host
    if os.environ.get("BURNISH_PROGRAM_HOST") == "off" or not _possible():
        return None
    environment = {name: environment[name] for name in environment.keys() - _NOT_COMPARED}
    if _host and (_host.process.poll() is not None or _host.environment != environment):
        _host.close()
        # Else it would stay behind as a zombie.
        threading.Thread(target=_host.process.wait, daemon=True).start()
        _host = None
    _host = _host or ForkServer(environment)
    return _host


@functools.cache
def _possible() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return not has_gpu()


@atexit.register
def _stop() -> None:
    # Waited for, so that whoever measures this process finds the programs' time in it.
    if _host:
        _host.process.kill()
        _host.process.wait()


def _forget() -> None:
    """A process that this one forks has no part in its host."""
    global _host, _lock
    _lock = threading.Lock()
    if _host:
        _host.close()
    _host = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
