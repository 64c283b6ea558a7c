"""Checkpoints in the store, under the key of their training, for any worker that meets that key.

`checkpoints/<key>/<number>-<step>.json` names an artifact. It is written before the artifact and
deleted after it, so that whatever was cut short is found and cleared away: a checkpoint counts once
its artifact is complete. The number is that of the lease under which it was written.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.errors import BurnishError, DamagedArtifact
from tasks.runtime.context import RunContext
from tasks.runtime.lease import held_number
from tasks.runtime.logs import run_logger
from tasks.storage.store import Store, open_store

KIND = "checkpoint"
_KEPT = 2
_ABANDONED = timedelta(days=14)
SECONDS_AFTER_STOP = 27.0
"""From a request to stop to the end of the last upload: Prefect's process worker kills a run after
30 s."""


class Checkpoint(Contract):
    """A record of a checkpoint.

    Attributes:
        number: Of the lease of the run that wrote it.
        step, steps: Where the training was, and where it ends.
        at, run_id, run_name: When it was written, and by which run.
    """

    artifact: Artifact
    number: int
    step: int
    steps: int
    at: str
    run_id: str = ""
    run_name: str


class Resumable(NamedTuple):
    """A checkpoint that a training goes on from.

    Attributes:
        record: What it is.
        folder: Its files, verified.
    """

    record: Checkpoint
    folder: Path

    @property
    def origin(self) -> str:
        """What it is, for people."""
        made = self.record
        return f"step {made.step} of {made.steps}, a checkpoint of run {made.run_name}, {made.at}"


class CheckpointStore:
    """Keeps the checkpoints of one training.

    Attributes:
        warnings: What could not be read or kept, for the report.

    Args:
        key: The training's key.
        context: The run.
        scratch: A folder on the disk of the program's own checkpoints.
    """

    def __init__(self, key: str, context: RunContext, scratch: Path) -> None:
        self._store, self._key, self._run = open_store(context.store), key, context
        self._scratch, self._number = scratch, held_number()
        self.warnings: list[str] = []
        self._waiting: tuple[Path, int, int] | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._stop_at = self._upload_seconds = 0.0
        self._newest: Checkpoint | None = None
        self._reached = (0, 0)
        self._thread = threading.Thread(target=self._keep_offered, daemon=True)

    def newest(self, own: bool = False) -> Resumable | None:
        """The newest checkpoint that verifies; a damaged one is passed over with a warning.

        Args:
            own: Whether only those count that this run has written.
        """
        for path, record in reversed(_records(self._store, self._key)):
            if own and record.run_id != self._run.run_id:
                continue
            try:
                folder = self._store.open(record.artifact)
            except DamagedArtifact as damage:
                # Without a manifest, its upload or deletion was only cut short.
                if damage.found != "no manifest":
                    self.warnings.append(
                        f"the checkpoint of step {record.step} is damaged ({damage.found}): the "
                        "training goes on from an earlier one, or from the start"
                    )
                _delete(self._store, path, record)
                continue
            self._newest = record
            return Resumable(record, folder)
        return None

    def update(self, line: dict[str, Any]) -> None:
        """Take a progress line of the training program; one may say that a checkpoint is there."""
        if line.get("stage") == "stopping":
            self._stop_at = time.monotonic()
        if line.get("steps"):
            self._reached = line["step"], line["steps"]
        if "checkpoint" in line:
            self._offer(Path(line["checkpoint"]), line["step"], line["steps"])

    def close(self) -> str:
        """Wait for the last upload: if the run was asked to stop, only as long as there is time.

        Returns:
            How far the training got, and where the next run goes on, as a sentence; empty before
            its first step.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            left = None
            if self._stop_at:
                left = max(0.0, self._stop_at + SECONDS_AFTER_STOP - time.monotonic())
                # An upload that takes longer than there is time only makes the end late.
                left = 0.0 if self._upload_seconds > left else left
            self._thread.join(left)
        step, steps = self._reached
        if self._newest:
            kept = f"the next run goes on from the checkpoint of step {self._newest.step}"
        else:
            kept = "no checkpoint was kept, so the next run begins at step 1"
        return f"The training reached step {step} of {steps}; {kept}." if step else ""

    def _offer(self, folder: Path, step: int, steps: int) -> None:
        """Link the files, since the program deletes its older checkpoints; an upload that has not
        begun yet makes way."""
        if not self._thread.ident:
            self._thread.start()
        link = self._scratch / f"kept-{step}"
        try:
            shutil.copytree(folder, link, copy_function=os.link)
        except (OSError, shutil.Error):
            shutil.rmtree(link, ignore_errors=True)
            return
        with self._changed:
            passed, self._waiting = self._waiting, (link, step, steps)
            self._changed.notify_all()
        if passed:
            shutil.rmtree(passed[0], ignore_errors=True)

    def _keep_offered(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                offered, self._waiting = self._waiting, None
            if offered is None:
                return
            began = time.monotonic()
            try:
                self._keep(*offered)
            except BurnishError as error:
                sentence = f"a checkpoint could not be kept: {error}"
                run_logger().warning(sentence)
                if sentence not in self.warnings:
                    self.warnings.append(sentence)
            self._upload_seconds = time.monotonic() - began
            shutil.rmtree(offered[0], ignore_errors=True)

    def _keep(self, folder: Path, step: int, steps: int) -> None:
        path = f"{_folder(self._key)}{self._number:06}-{step:09}.json"
        at = datetime.now(UTC).isoformat(timespec="seconds")

        def record_of(artifact: Artifact) -> Checkpoint:
            return Checkpoint(
                artifact=artifact,
                number=self._number,
                step=step,
                steps=steps,
                at=at,
                run_id=self._run.run_id,
                run_name=self._run.run_name,
            )

        def write_record(artifact: Artifact) -> None:
            data = record_of(artifact).model_dump_json(indent=1).encode()
            self._store.objects.write(path, data)

        self._newest = record_of(self._store.put(KIND, folder, write_record))
        for old, other in _records(self._store, self._key)[:-_KEPT]:
            _delete(self._store, old, other)


def remove_checkpoints(key: str, context: RunContext) -> None:
    """Delete the checkpoints of a training whose result is recorded."""
    store = open_store(context.store)
    for path, record in _records(store, key):
        _delete(store, path, record)


def remove_abandoned(context: RunContext) -> None:
    """Delete the checkpoints of trainings that nobody went on with for two weeks, and those that no
    record names, such as one whose record could not be read."""
    store = open_store(context.store)
    oldest = (datetime.now(UTC) - _ABANDONED).isoformat(timespec="seconds")
    # Before the records: a checkpoint that is being written has its record first.
    stored = {path.split("/")[2] for path in store.objects.sizes(f"artifacts/{KIND}/")}
    named = set()
    for key in {path.split("/")[1] for path in store.objects.sizes("checkpoints/")}:
        records = _records(store, key)
        named |= {record.artifact.digest for _, record in records}
        if records and max(record.at for _, record in records) < oldest:
            for path, record in records:
                _delete(store, path, record)
    for digest in stored - named:
        store.discard(KIND, digest)


def _folder(key: str) -> str:
    return f"checkpoints/{key}/"


def _records(store: Store, key: str) -> list[tuple[str, Checkpoint]]:
    """The records of a training, the newest last: a later lease's are newer. One that cannot be
    read is deleted."""
    found = []
    for path in sorted(store.objects.sizes(_folder(key))):
        try:
            found.append((path, Checkpoint.model_validate(store.read_json(path))))
        except ValueError:
            store.objects.delete(path)
    return found


def _delete(store: Store, path: str, record: Checkpoint) -> None:
    """Delete a checkpoint; its artifact stays if another record, of another lease, names it too."""
    key = path.split("/")[1]
    others = {other.artifact.digest for name, other in _records(store, key) if name != path}
    if record.artifact.digest not in others:
        store.discard(record.artifact.kind, record.artifact.digest)
    store.objects.delete(path)
