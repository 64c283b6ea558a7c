"""Programs as forks of a process that has already loaded their libraries: the parent's side of
`tasks.runtime.fork_server_program`.

A fresh process spends seconds of CPU time on importing torch and transformers, and a run starts
five programs. So one process, the fork server, imports them once, and each program is a fork of it.
Programs are fresh processes instead where forking does not work: without Linux, with a GPU (a
library may initialize CUDA when it is imported, and CUDA does not survive a fork), or with
`BURNISH_FORK_SERVER=off` in the environment, which also helps with debugging.
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
    # Other architectures import little beyond what this one does.
    "transformers.models.bert.modeling_bert",
)
_TRAINING = ("bitsandbytes", "sklearn.metrics", "peft", "evaluate", "transformers.trainer")
LIBRARIES = {
    "tasks.base_model.gguf_program": _MODELS,
    "tasks.base_model.inspect_program": _MODELS,
    "tasks.tokenize.classification_program": _MODELS,
    "tasks.tokenize.language_program": _MODELS,
    # It traces a training step, and training follows it.
    "tasks.plan.forecast_program": (*_MODELS, *_TRAINING),
    "tasks.finetune.gguf_check_program": _MODELS,
    "tasks.finetune.gguf_export_program": _MODELS,
    "tasks.finetune.program": (*_MODELS, *_TRAINING),
    "tasks.evaluate.classification_program": _MODELS,
    "tasks.evaluate.language_program": _MODELS,
    # Without lm_eval, which few runs need: the program imports it.
    "tasks.evaluate.benchmark_program": (*_MODELS, *_TRAINING),
}
"""What must be imported before a program is forked. The server imports nothing else: each program
imports our own modules itself. On two cores, programs for a tiny model took 0.3 to 2 s as forks of
a server that had loaded these libraries, and 4 to 9 s as fresh processes. Forked any earlier, a
program would import the same libraries once more, in parallel with the server: that took longer
than a fresh process."""

FRESH = frozenset({"tasks.evaluate.benchmark_check_program"})
"""Programs that need none of these libraries and are not forked. This one took 2 s as a fresh
process, and 5 s when it waited for the server's first imports: it comes first in a run, which may
end without any other program."""

_POLL_SECONDS = 0.5
# Variables that may differ between the server and a program. pytest sets the first for each test.
# scikit-learn sets the others when it is imported, also in a program.
_NOT_COMPARED = {"PYTEST_CURRENT_TEST", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}


class ForkServer:
    """A fork server's process. It ends when its socket is closed, by `close` or with this process.

    Attributes:
        environment: The environment that it was started with. Its programs can have no other:
            libraries read variables when they are imported.
        process: The server itself.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._jobs, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        libraries = dict.fromkeys(name for names in LIBRARIES.values() for name in names)
        with server_end:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "tasks.runtime.fork_server_program",
                    str(os.getpid()),
                    *libraries,
                ],
                stdin=server_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )

    def send(self, module: str, job_file: Path, fds: list[int]) -> None:
        """Have a program forked.

        Args:
            module: The program's module.
            job_file: Its argument.
            fds: Descriptors of its standard input, output and error, and of its status socket.
        """
        job = {
            "module": module,
            "job_file": str(job_file),
            "cwd": os.getcwd(),
            "needs": LIBRARIES.get(module, ()),
        }
        socket.send_fds(self._jobs, [json.dumps(job).encode()], fds)

    def close(self) -> None:
        """Send no more jobs. The server ends when the last of its programs has ended."""
        self._jobs.close()


class ForkedProgram:
    """A program that the server forks, with the part of `subprocess.Popen` that `run_program` uses.

    Attributes:
        pid: None until the program has been forked.
        returncode: As in `Popen`; the server's if the server died.
        stdin, stdout: This process's ends of the program's pipes.
    """

    def __init__(self, server: ForkServer, module: str, job_file: Path, stderr: int) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None
        self._server, self._module, self._pidfd = server, module, -1
        with contextlib.ExitStack() as child_ends:
            stdin, written = os.pipe()
            child_ends.callback(os.close, stdin)
            self.stdin = open(written, "wb", buffering=0)  # noqa: SIM115
            read, stdout = os.pipe()
            child_ends.callback(os.close, stdout)
            self.stdout = open(read, "rb", buffering=0)  # noqa: SIM115
            self._status, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            child_ends.enter_context(status)
            server.send(module, job_file, [stdin, stdout, stderr, status.fileno()])

    def poll(self) -> int | None:
        """The return code, or None while the program runs."""
        while self.returncode is None and self._receive(0.0):
            pass
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the program has ended, and return its return code.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = _POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(self._module, timeout)
            # Short waits: an exception that is set on this thread is only raised between them.
            self._receive(min(left, _POLL_SECONDS))
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is not None:
            return
        if self.pid is None:
            # The server still imports libraries. It will find the status socket closed, and not
            # fork.
            self._finish(-number)
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _receive(self, timeout: float) -> bool:
        """Handle one message from the server. Returns False if none arrived in time."""
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
            self._end_without_server()
        return True

    def _end_without_server(self) -> None:
        """The server died, or could not fork: the program must not outlive it."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            ended.poll()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.process.wait(1.0)
        self._finish(self._server.process.returncode or 1)

    def _finish(self, code: int) -> None:
        self.returncode = code
        self._status.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)


_server: ForkServer | None = None
_lock = threading.Lock()


def start(
    module: str, job_file: Path, stderr: int, environment: dict[str, str]
) -> ForkedProgram | None:
    """Start a program as a fork of the server, without waiting.

    Args:
        module: The program's module.
        job_file: Its argument.
        stderr: Descriptor of its standard error.
        environment: Its environment. If it differs from the server's, a new server is started.

    Returns:
        The program, or None if it must be a fresh process.
    """
    if module in FRESH:
        return None
    with _lock, contextlib.suppress(OSError):
        if server := _server_for(environment):
            return ForkedProgram(server, module, job_file, stderr)
    return None


def preload(environment: dict[str, str]) -> None:
    """Start the server, where programs are forked, without waiting until it has loaded libraries.

    Args:
        environment: The programs' environment.
    """
    with _lock, contextlib.suppress(OSError):
        _server_for(environment)


def current_server() -> ForkServer | None:
    """The server that was started last by this process."""
    return _server


def _server_for(environment: dict[str, str]) -> ForkServer | None:
    global _server
    if os.environ.get("BURNISH_FORK_SERVER") == "off" or not can_fork():
        return None
    environment = {name: environment[name] for name in environment.keys() - _NOT_COMPARED}
    if _server and (_server.process.poll() is not None or _server.environment != environment):
        _server.close()
        # Without this wait it would be left as a zombie.
        threading.Thread(target=_server.process.wait, daemon=True).start()
        _server = None
    _server = _server or ForkServer(environment)
    return _server


@functools.cache
def can_fork() -> bool:
    """Whether programs can be forked on this machine: it has pidfds and no GPU."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return not has_gpu()


@atexit.register
def _stop() -> None:
    # Waiting adds the programs' CPU time to what this process reports of its children.
    if _server:
        _server.process.kill()
        _server.process.wait()


def _forget() -> None:
    """Give up the server in a process that this one forks: it belongs to the parent."""
    global _server, _lock
    _lock = threading.Lock()
    if _server:
        _server.close()
    _server = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
