"""A worker of a GPU pool, on another machine as far as one machine can play two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.flows.conftest import training_programs


class Worker:
    """`python -m infra.gpu_workers`, on a machine of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self._environment = folder, environment
        self.folder.mkdir()
        self.start()

    def start(self) -> None:
        """Start it in a process group of its own."""
        places = {"HOME": self.folder, "PREFECT_HOME": self.folder / "p", "TMPDIR": self.folder}
        # What the runs' own recipe says of the store counts, not this.
        own = {**{name: str(path) for name, path in places.items()}, "BURNISH_STORE": "elsewhere"}
        with open(self.folder / "output", "a") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "infra.gpu_workers", "--pool", "gpu"],
                cwd=self.folder,
                env={**os.environ, **own, **self._environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def runs(self) -> list[psutil.Process]:
        """The processes of its runs, the training programs below them included."""
        below = psutil.Process(self._process.pid).children(recursive=True)
        # The script's own child is Prefect's worker.
        return [each for each in below if "prefect.engine" in " ".join(each.cmdline())]

    def trains(self) -> bool:
        """Whether a training program is at work."""
        return bool(training_programs(self._process.pid))

    def lose(self) -> None:
        """Kill everything at once, as the loss of a machine does."""
        lost = psutil.Process(self._process.pid).children(recursive=True)
        for process in [psutil.Process(self._process.pid), *lost]:
            kill(process)
        self._process.wait()

    def stop(self) -> None:
        """Stop it as a service manager does."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)


def kill(process: psutil.Process) -> None:
    with_below = [process, *process.children(recursive=True)] if process.is_running() else []
    for each in with_below:
        if each.is_running():
            each.send_signal(signal.SIGKILL)
