"""Runs a program as several processes, its ranks, under torch's elastic agent, as `torchrun` does.

    python -P -m tasks.runtime.ranks_program COUNT MODULE JOB.json

To its parent, this process is the program: it shares standard input and output with the ranks,
passes SIGTERM on to all of them, and ends like the rank that failed, with that rank's exit status
or killed by the same signal. When the parent ends, this process and the ranks end too. The agent
puts each rank into a session of its own, so no signal to a process group reaches them.
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

# Without SIGTERM: half a minute after it, the agent would kill ranks that still save their work.
_AGENT_SIGNALS = "SIGHUP,SIGQUIT"


def main() -> NoReturn:
    """See the module's description."""
    number, module, job_file = sys.argv[1:]
    watch_parent(0)
    signal.signal(signal.SIGTERM, _forward)
    # Ctrl-C reaches the whole process group: the parent decides, and sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prepare(int(number))
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", number]
    try:
        launch([*options, "--signals-to-handle", _AGENT_SIGNALS, "-m", module, job_file])
    except ChildFailedError as error:
        _end_as([failure.exitcode for failure in error.failures.values()])
    os._exit(0)


def _prepare(number: int) -> None:
    """Set the environment that the ranks inherit."""
    # The working folder may hold modules that shadow the standard library's.
    os.environ["PYTHONSAFEPATH"] = "1"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // number)))
    if sys.platform == "linux":
        # All ranks are on this machine, whose own name may not resolve to it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _forward(number: int, frame: Any) -> None:
    ranks = psutil.Process().children()
    for process in ranks:
        process.terminate()
    if not ranks:
        _end_by(number)


def _end_as(codes: list[int]) -> NoReturn:
    """End like the rank that failed. If a rank was killed, that is the cause: its peers fail as a
    consequence."""
    killed = [-code for code in codes if code < 0]
    killed.sort(key=lambda number: number == signal.SIGTERM)
    if killed:
        _end_by(killed[0])
    os._exit(codes[0])


def _end_by(number: int) -> NoReturn:
    # Only the rank's core file is of use.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
    os.kill(os.getpid(), number)
    signal.pause()
    raise AssertionError


if __name__ == "__main__":
    main()
