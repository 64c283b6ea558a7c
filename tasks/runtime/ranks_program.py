"""Runs a program as several processes, its ranks, under torch's elastic agent, as `torchrun` does.

    python -P -m tasks.runtime.ranks_program COUNT MODULE JOB.json

To whoever started it, this process is the program: standard input and output are the ranks' too,
SIGTERM asks them all to stop, and it ends as the rank ended that failed: with its exit status, or
by the signal that killed it. It ends, and the ranks with it, when its parent does: the agent puts
each rank into a session of its own, so no signal to a process group reaches them.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Any, NoReturn

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as launch

from tasks.runtime.program import watch_parent

# Not SIGTERM: the agent would kill, after half a minute, ranks that are still saving their work.
_FOR_THE_AGENT = "SIGHUP,SIGQUIT"


def main() -> NoReturn:
    """See the module's description."""
    number, module, job_file = sys.argv[1:]
    watch_parent(0)
    signal.signal(signal.SIGTERM, _pass_on)
    # Ctrl-C reaches the whole process group: the parent decides, and sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prepare(int(number))
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", number]
    try:
        launch([*options, "--signals-to-handle", _FOR_THE_AGENT, "-m", module, job_file])
    except ChildFailedError as error:
        _end_as([failure.exitcode for failure in error.failures.values()])
    os._exit(0)


def _prepare(number: int) -> None:
    """Settle the environment that the ranks inherit."""
    # The working folder may hold modules that shadow the standard library's.
    os.environ["PYTHONSAFEPATH"] = "1"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // number)))
    if sys.platform == "linux":
        # All ranks are here, and a machine's own name need not lead to it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _pass_on(number: int, frame: Any) -> None:
    ranks = psutil.Process().children()
    for process in ranks:
        process.terminate()
    if not ranks:
        _end_by(number)


def _end_as(codes: list[int]) -> NoReturn:
    """End as the rank did that failed. Ranks whose peer was killed fail as well: what killed it
    is the cause."""
    killed = [-code for code in codes if code < 0]
    killed.sort(key=lambda number: number == signal.SIGTERM)
    if killed:
        _end_by(killed[0])
    os._exit(codes[0])


def _end_by(number: int) -> NoReturn:
    # The rank's core file is the one that tells something.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
    os.kill(os.getpid(), number)
    signal.pause()
    raise AssertionError


if __name__ == "__main__":
    main()
