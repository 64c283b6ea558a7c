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

from tasks.contracts.errors import (
    BurnishError,
    CodeFailed,
    OutOfHostMemory,
    Preempted,
    TimedOut,
    from_json,
)
from tasks.contracts.jobs import Job, Result
from tasks.runtime import fork_server
from tasks.runtime.program import parse

ROOT = Path(__file__).resolve().parents[2]

_SECRET = re.compile(r"^(AWS|PREFECT)_|TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.I)
# What tells a process that it is one of several. Some clusters set it for all that they run.
_RANKS = re.compile(
    r"^(RANK|LOCAL_RANK|GROUP_RANK|ROLE_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_WORLD_SIZE"
    r"|ROLE_WORLD_SIZE|ROLE_NAME|MASTER_ADDR|MASTER_PORT|TORCHELASTIC_.*|ACCELERATE_.*|FSDP_.*)$"
)
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_LEAVE, _SECONDS_TO_LEAVE_TOGETHER = 0.2, 5.0
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
    grace: float = 60.0,
    processes: int = 1,
) -> AnyResult:
    """Run a program and wait for its result.

    Whatever ends this call (also a cancellation) ends the program: it is asked to stop, and
    killed after the grace.

    Args:
        module: The program's module, `tasks.finetune.program`.
        job: Its job. Relative paths in it start from this process's folder.
        result: The result's model.
        scratch: A folder for the job file and the program's log. It is created if need be.
        on_progress: Called with each progress line as it comes, in this thread.
        time_limit: Seconds until the program is stopped; None for no limit.
        limit_name: The recipe field that sets the limit, for the error.
        grace: Seconds between the request to stop and the kill.
        processes: How many run the program together. Progress and result are the first one's.

    Returns:
        The program's result.

    Raises:
        BurnishError: The program's own typed error.
            Of several processes, that of the one that failed first.
        OutOfHostMemory: It was killed by SIGKILL.
        Preempted: It was stopped by SIGTERM.
        TimedOut: It ran past the limit.
        CodeFailed: It ended in any other way without a result, or its result is not valid.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    name = program_name(module)
    job_file, log = scratch / f"{name}.job.json", scratch / f"{name}.log"
    job_file.write_bytes(job.model_dump_json(indent=2).encode())
    together = processes > 1
    process = (
        _start_several(processes, module, job_file, log)
        if together
        else _start(module, job_file, log)
    )
    try:
        last = _follow(process, on_progress, time_limit, together)
        if last is None and process.poll() is None:
            raise _timed_out(name, limit_name, time_limit or 0.0)
    finally:
        _end(process, grace, _SECONDS_TO_LEAVE_TOGETHER if together else _SECONDS_TO_LEAVE)
    if together and _killed(process.returncode) and _may_follow_from_another(last):
        last = None
    return parse(result, _outcome(last, process.returncode, name, log), f"result of program {name}")


def program_name(module: str) -> str:
    """What a program is called in messages and files: `evaluate-language` for
    `tasks.evaluate.language_program`."""
    parts = module.removeprefix("tasks.").replace("_program", "").replace(".program", "")
    return parts.replace(".", "-").replace("_", "-")


def preload() -> None:
    """Have torch loaded for programs that will be run soon. Does not wait, and never fails."""
    fork_server.preload(child_environment())


def child_environment() -> dict[str, str]:
    """This process's environment as a program gets it: no credentials, no network, no tracking."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not _SECRET.search(key) and not _RANKS.match(key)
    }
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        # The order of sets must not reach a file that ships.
        "PYTHONHASHSEED": "0",
        # Spinning threads of several programs starve each other: up to 5 times slower. Who has the
        # cores alone may gain by GOMP_SPINCOUNT=10000, which is kept if it is set.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Programs fork nothing, so the tokenizer's threads are safe.
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
        # -P: the working folder may hold modules that shadow the standard library's.
        return fork_server.start(
            module, job_file, stderr.fileno(), environment
        ) or subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(job_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )


def _start_several(count: int, module: str, job_file: Path, log: Path) -> Process:
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
    process: Process, on_progress: OnProgress | None, time_limit: float | None, together: bool
) -> dict[str, Any] | None:
    """Pass progress on. Returns the program's last word, or None when it ended or ran too long.

    Where processes work together, the first error may be that of one whose peer died without a
    word: then how they all ended must be awaited.
    """
    deadline = time.monotonic() + time_limit if time_limit else None
    found: dict[str, Any] | None = None
    for line in _lines(process, deadline):
        event = line.pop("event", None)
        if event in ("result", "error"):
            last = {event: line[event]}
            if not together or not _may_follow_from_another(last):
                return last
            found = found or last
        elif event == "progress" and on_progress:
            on_progress(line)
    return found


def _may_follow_from_another(last: dict[str, Any] | None) -> bool:
    """Whether a process may have failed in this way because another one had ended."""
    weak = (CodeFailed.__name__, Preempted.__name__)
    return bool(last) and last.get("error", {}).get("type") in weak


def _killed(status: int) -> bool:
    return status < 0 and status != -signal.SIGTERM


def _lines(process: Process, deadline: float | None) -> Iterator[dict[str, Any]]:
    stream = process.stdout.fileno()
    os.set_blocking(stream, False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while deadline is None or time.monotonic() < deadline:
            # A process that the program forked may hold the pipe open after its end.
            ended = process.poll() is not None
            # Short waits: an exception that is set on this thread only fires between them.
            selector.select(0 if ended else _SECONDS_BETWEEN_LOOKS)
            data = _read(stream)
            if data == b"":
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_SECONDS_BETWEEN_LOOKS)
            if (data is None and ended) or (data == b"" and process.poll() is not None):
                return
            *whole, rest = (rest + (data or b"")).split(b"\n")
            yield from filter(None, map(_parsed, whole))


def _read(stream: int) -> bytes | None:
    """What is there to read: empty at the end, None for nothing yet."""
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


def _end(process: Process, grace: float, patience: float) -> None:
    """Leave no process behind, whatever happened."""
    try:
        if process.poll() is None:
            # After its last word a program exits by itself; else it is asked to.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
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
            "start the run again: the steps that were finished are not done again",
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
        f"program {name} still at work after {seconds:g} s",
        "a result within the limit",
        f"raise {limit_name}, or give it less to do",
    )


def _tail(log: Path) -> str:
    text = log.read_bytes()[-_TAIL_CHARACTERS:].decode(errors="replace").strip()
    return f"last lines of its log:\n{text}" if text else "its log is empty"
