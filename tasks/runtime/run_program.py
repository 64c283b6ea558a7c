"""Runs a program in a process of its own: the parent's side of `tasks.runtime.program`.

A program loads torch, and may crash, run out of memory or hang; the flow must survive that and name
the cause. A program also reads data and models from outside, so it gets no credentials.

The process is a fork of one that has loaded torch (`tasks.runtime.fork_server`), or a fresh one
where forking does not work or `BURNISH_FORK_SERVER=off` is set. If several processes train
together, the program is a fresh `tasks.runtime.ranks_program`, which starts them.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson
from prefect.exceptions import TerminationSignal

from tasks.contracts.errors import (
    BurnishError,
    CodeFailed,
    OutOfHostMemory,
    Preempted,
    TimedOut,
    from_json,
)
from tasks.contracts.jobs import Job, Result
from tasks.runtime import fork_server, heartbeat
from tasks.runtime.heartbeat import Watch
from tasks.runtime.lease import LeaseLost, check_lease
from tasks.runtime.program import parse
from tasks.runtime.termination import check_sigterm

ROOT = Path(__file__).resolve().parents[2]

_SECRET = re.compile(r"^(AWS|PREFECT)_|TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.I)
# Variables that make a process one of several ranks. Some clusters set them for every process.
_RANKS = re.compile(
    r"^(RANK|LOCAL_RANK|GROUP_RANK|ROLE_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_WORLD_SIZE"
    r"|ROLE_WORLD_SIZE|ROLE_NAME|MASTER_ADDR|MASTER_PORT|TORCHELASTIC_.*|ACCELERATE_.*|FSDP_.*)$"
)
_POLL_SECONDS = 0.5
# How long a single process, and several ranks, have to exit after their last message.
_EXIT_SECONDS, _RANKS_EXIT_SECONDS = 0.2, 5.0
# Prefect's process worker kills a cancelled run, and with it the program, after 30 seconds. What is
# left of them is for what the program has saved.
_GRACE_SECONDS = 22.0
_TAIL_CHARACTERS = 4000

AnyResult = TypeVar("AnyResult", bound=Result)
OnProgress = Callable[[dict[str, Any]], None]
Process = subprocess.Popen[bytes] | fork_server.ForkedProgram


def run_program(
    module: str,
    job: Job,
    result: type[AnyResult],
    *,
    scratch: Path,
    on_progress: OnProgress | None = None,
    time_limit: float | None = None,
    limit_name: str = "time limit",
    grace: float = _GRACE_SECONDS,
    processes: int = 1,
    stall_seconds: float | None = None,
    stall_name: str = "stall limit",
) -> AnyResult:
    """Run a program and wait for its result.

    However this call ends, a cancellation included, the program ends too: it is asked to stop, and
    killed after the grace period. What it reports meanwhile is passed on, after a progress report
    of the stage `stopping`.

    Args:
        module: The program's module, `tasks.finetune.program`.
        job: Its job. Relative paths in it are relative to this process's working directory.
        result: The result's model.
        scratch: A folder for the job file and the program's log. It is created if necessary.
        on_progress: Called with each progress report as it arrives, in this thread.
        time_limit: Seconds until the program is stopped; None for no limit.
        limit_name: The recipe field that sets the limit, for the error.
        grace: Seconds between the request to stop and the kill.
        processes: Number of ranks that run the program together. Progress and result are rank 0's.
        stall_seconds: How long the program's main thread may go without a step, a batch or a stage.
        stall_name: The recipe field that sets this limit, for the error.

    Returns:
        The program's result.

    Raises:
        BurnishError: The program's own typed error; of several ranks, that of the first to fail.
        OutOfHostMemory: The program was killed by SIGKILL.
        Preempted: The program was stopped by SIGTERM.
        TimedOut: The program ran past the limit.
        Hung: The program was stopped, or stands still.
        CodeFailed: The program ended in another way without a result, or its result is not valid.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    name = program_name(module)
    job_file, log = scratch / f"{name}.job.json", scratch / f"{name}.log"
    job_file.write_bytes(job.model_dump_json(indent=2).encode())
    several = processes > 1
    process = (
        _start_ranks(processes, module, job_file, log) if several else _start(module, job_file, log)
    )
    try:
        watch = Watch(name, stall_seconds, stall_name)
        last = _follow(process, watch, on_progress, time_limit, several)
        if last is None and process.poll() is None:
            raise _timed_out(name, limit_name, time_limit or 0.0)
    except BaseException:
        _stop(process, on_progress, grace)
        grace = 0.0
        raise
    finally:
        _end(process, grace, _RANKS_EXIT_SECONDS if several else _EXIT_SECONDS)
    if several and _killed(process.returncode) and _may_be_consequence(last):
        last = None
    return parse(result, _outcome(last, process.returncode, name, log), f"result of program {name}")


def program_name(module: str) -> str:
    """A program's name in messages and files: `evaluate-language` for
    `tasks.evaluate.language_program`."""
    parts = module.removeprefix("tasks.").replace("_program", "").replace(".program", "")
    return parts.replace(".", "-").replace("_", "-")


def preload() -> None:
    """Start loading torch for programs that will run soon. Does not wait, and never fails."""
    fork_server.preload(child_environment())


def child_environment() -> dict[str, str]:
    """A program's environment: this process's, without credentials, network and tracking."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not _SECRET.search(key) and not _RANKS.match(key)
    }
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        heartbeat.VARIABLE: str(heartbeat.SECONDS),
        # The order of a set must not change a file that ships.
        "PYTHONHASHSEED": "0",
        # Spinning threads of several programs starve each other: up to 5 times slower. On a machine
        # without other work, GOMP_SPINCOUNT=10000 may be faster; it is kept if it is set.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Programs do not fork, so the tokenizer's threads are safe.
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }


def _start(module: str, job_file: Path, log: Path) -> Process:
    environment = child_environment()
    with log.open("wb") as stderr:
        # -P: modules in the working directory may shadow those of the standard library.
        return fork_server.start(
            module, job_file, stderr.fileno(), environment
        ) or subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(job_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )


def _start_ranks(count: int, module: str, job_file: Path, log: Path) -> Process:
    launcher = [sys.executable, "-P", "-m", "tasks.runtime.ranks_program", str(count)]
    with log.open("wb") as stderr:
        return subprocess.Popen(
            [*launcher, module, str(job_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=child_environment(),
        )


def _follow(
    process: Process,
    watch: Watch,
    on_progress: OnProgress | None,
    time_limit: float | None,
    several: bool,
) -> dict[str, Any] | None:
    """Pass progress on until the program's last message.

    With several ranks, an error that may be the consequence of another rank's death is not the last
    message: what killed that rank is only known when all have ended.

    Returns:
        The result or the error; None if the program ended without one or exceeded the limit.
    """
    deadline = time.monotonic() + time_limit if time_limit else None
    first_error: dict[str, Any] | None = None
    for line in _lines(process, deadline, watch):
        event = line.pop("event", None)
        if event in ("result", "error"):
            last = {event: line[event]}
            if not several or not _may_be_consequence(last):
                return last
            first_error = first_error or last
        elif event == "progress" and on_progress:
            on_progress(line)
    return first_error


def _stop(process: Process, on_progress: OnProgress | None, grace: float) -> None:
    """Ask a program to stop, and pass on its last progress, such as a checkpoint. A second SIGTERM,
    as from a service manager and a worker that both stop the run, does not shorten the time: the
    program may be saving its work."""
    if process.poll() is not None:
        return
    deadline = time.monotonic() + grace
    pass_on = on_progress or (lambda line: None)
    process.terminate()
    lines: Iterator[dict[str, Any]] = iter([{"event": "progress", "stage": "stopping"}])
    while process.poll() is None and time.monotonic() < deadline:
        try:
            for line in lines:
                if line.pop("event", None) == "progress":
                    pass_on(line)
            lines = _lines(process, deadline)
        except (TerminationSignal, KeyboardInterrupt, LeaseLost):
            lines = _lines(process, deadline)
        except Exception:
            # What ends the run is known already.
            pass_on = lambda line: None  # noqa: E731


def _may_be_consequence(last: dict[str, Any] | None) -> bool:
    """Whether a rank may have failed with this error only because another rank had ended."""
    errors = (CodeFailed.__name__, Preempted.__name__)
    return bool(last) and last.get("error", {}).get("type") in errors


def _killed(status: int) -> bool:
    return status < 0 and status != -signal.SIGTERM


def _lines(
    process: Process, deadline: float | None, watch: Watch | None = None
) -> Iterator[dict[str, Any]]:
    stream = process.stdout.fileno()
    os.set_blocking(stream, False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while deadline is None or time.monotonic() < deadline:
            # A process that the program forked may hold the pipe open after the program has ended.
            ended = process.poll() is not None
            # Short waits: an exception that is set on this thread is only raised between them.
            selector.select(0 if ended else _POLL_SECONDS)
            check_sigterm()
            check_lease()
            data = _read(stream)
            if data == b"":
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
            if (data is None and ended) or (data == b"" and process.poll() is not None):
                return
            *whole, rest = (rest + (data or b"")).split(b"\n")
            for line in filter(None, map(_parsed, whole)):
                if watch:
                    watch.hear(line)
                yield line
            # After what was waiting to be read: this process may have been stopped itself.
            if watch and not ended:
                watch.check(process.pid)


def _read(stream: int) -> bytes | None:
    """The bytes that have arrived: empty at the end of the stream, None if there are none yet."""
    try:
        return os.read(stream, 1 << 16)
    except BlockingIOError:
        return None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _end(process: Process, grace: float, exit_seconds: float) -> None:
    """Make sure that the program has ended, and close its pipes."""
    try:
        if process.poll() is None:
            # After its last message a program exits by itself.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(exit_seconds)
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _outcome(last: dict[str, Any] | None, status: int, name: str, log: Path) -> dict[str, Any]:
    if last and "result" in last:
        return last["result"]
    if last:
        error = from_json(last["error"])
        raise _with_log(error, log) if type(error) is CodeFailed else error
    raise _ended(status, name, log)


def _with_log(error: CodeFailed, log: Path) -> CodeFailed:
    found = f"{error.found}\n{_tail(log)}"
    return CodeFailed(error.where, found, error.expected, error.fix)


def _ended(status: int, name: str, log: Path) -> BurnishError:
    if status == -signal.SIGKILL:
        return OutOfHostMemory(
            f"program {name}",
            "it was killed by SIGKILL, most often by the kernel because memory ran out",
            "to run to its end",
            "give the worker more memory, or lower training.batch_size or training.max_length",
        )
    if status == -signal.SIGTERM:
        return Preempted(
            f"program {name}",
            "it was stopped by SIGTERM",
            "to run to its end",
            "start the run again: finished steps are not repeated",
        )
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return CodeFailed(
        f"program {name}",
        f"{how} and no result\n{_tail(log)}",
        "a result or an error",
        "this is a defect of the program or of a library: report it with the log above",
    )


def _timed_out(name: str, limit_name: str, seconds: float) -> TimedOut:
    return TimedOut(
        limit_name,
        f"program {name} still running after {seconds:g} s",
        "a result within the limit",
        f"raise {limit_name}, or reduce the work",
    )


def _tail(log: Path) -> str:
    text = log.read_bytes()[-_TAIL_CHARACTERS:].decode(errors="replace").strip()
    return f"last lines of its log:\n{text}" if text else "its log is empty"
