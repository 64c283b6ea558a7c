"""A run that kills itself, with every process that it started, at a given instant:
`python -m tests.faults.dying_run RECIPE NOTES KILL`.

NOTES is a file to which it appends JSON lines of what it did. KILL is JSON: one of `{}`,
`{"seconds": 3.2}` after its start, `{"write": 7, "after": true}` before or after that write to the
store or to a target, `{"step": 40, "seconds": 0.1}` so long after its training reported a step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.cli import main
from tasks.finetune.checkpoint_store import KIND, CheckpointStore
from tasks.storage.objects import FolderObjects, S3Objects
from tasks.storage.store import Store

WRITES = ("write", "create", "replace", "upload")


class Notes:
    """Appends what happened to a file; each line is there when the process is killed."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._began = time.monotonic()

    def add(self, **facts: Any) -> None:
        """Append a line, with the seconds since the start and the time of day."""
        line = {"at": round(time.monotonic() - self._began, 3), "clock": time.time(), **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")


def die() -> None:
    """Kill this process and those that it started, at once."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def die_in(seconds: float) -> None:
    """Kill them after some seconds, while they work on."""
    timer = threading.Timer(seconds, die)
    timer.daemon = True
    timer.start()


def watch_writes(kill: dict[str, Any], notes: Notes) -> None:
    """Count the writes to the store and the targets, and die at one of them."""
    count, lock = 0, threading.Lock()

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(objects: Any, path: str, *arguments: Any, **options: Any) -> Any:
            nonlocal count
            with lock:
                # A lease is renewed by the clock.
                count += (mine := not path.startswith("leases/"))
                due = mine and count == kill.get("write")
            if mine:
                notes.add(write=path)
            if due and not kill["after"]:
                die()
            answer = method(objects, path, *arguments, **options)
            if due:
                die()
            return answer

        return call

    for kind in (FolderObjects, S3Objects):
        for name in WRITES:
            setattr(kind, name, counting(getattr(kind, name)))


def watch_training(kill: dict[str, Any], notes: Notes) -> None:
    """Note the steps of the training and the uploads of its checkpoints, and die at a step."""
    update, put = CheckpointStore.update, Store.put

    def noting_update(self: Any, line: dict[str, Any]) -> None:
        update(self, line)
        if line.get("steps"):
            notes.add(step=line["step"], steps=line["steps"], saved="checkpoint" in line)
            if line["step"] >= kill.get("step", line["steps"] + 1):
                die_in(kill["seconds"])

    def noting_put(self: Any, kind: str, *arguments: Any) -> Any:
        began = time.monotonic()
        artifact = put(self, kind, *arguments)
        if kind == KIND:
            notes.add(upload=round(time.monotonic() - began, 3))
        return artifact

    CheckpointStore.update, Store.put = noting_update, noting_put


if __name__ == "__main__":
    recipe, file, what = sys.argv[1:]
    wanted, written = json.loads(what), Notes(Path(file))
    written.add(begins=True)
    watch_writes(wanted, written)
    watch_training(wanted, written)
    if "seconds" in wanted and "step" not in wanted:
        die_in(wanted["seconds"])
    main(["retrain", recipe])
