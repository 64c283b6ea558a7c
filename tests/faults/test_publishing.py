"""A publisher that dies at any write: the next run finishes its release, once.

Death is an exception that nothing catches, raised before or after each write to the store and to
the target, once publishing has begun.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from flows import release as flow
from tasks.contracts.errors import StorageFailed
from tasks.release import publish as publish_
from tasks.storage.objects import FolderObjects
from tests.faults.soundness import damaged_artifacts, left_behind
from tests.flows.conftest import Place, training_programs
from tests.waiting import wait_for

NAME = "second"  # the same work under another name: only gate, publish and announce run
WRITES, UPLOADS = 14, 5


class Died(BaseException):
    """The process ended here."""


class DyingObjects:
    """Counts writes once publishing has begun, and dies at one of them; no write follows."""

    def __init__(self, monkeypatch, at: int, after: bool) -> None:
        self.count, self.at, self.after, self.begun, self.dead = 0, at, after, False, False
        self._lock = threading.Lock()
        publish = publish_.publish

        def begin(*arguments):
            self.begun = True
            return publish(*arguments)

        monkeypatch.setattr(flow, "publish", begin)
        for name in ("write", "create", "replace", "upload"):
            monkeypatch.setattr(FolderObjects, name, self._dying(getattr(FolderObjects, name)))

    def _dying(self, method):
        def call(objects, *arguments, **options):
            with self._lock:
                self.count += self.begun
                due = self.begun and self.count == self.at
                if self.dead or (due and not self.after):
                    self.dead = True
                    raise Died
                answer = method(objects, *arguments, **options)
                if due:
                    self.dead = True
                    raise Died
                return answer

        return call


def check_released_once(place: Place) -> None:
    """The log, the pointer and the files say the same thing, and say it once."""
    entries = place.log(NAME)
    assert [entry.kind for entry in entries].count("deployed") == 1
    deployed = entries[-1]
    assert deployed.kind == "deployed"
    pointer = json.loads((place.folder / "releases" / NAME / "latest/production.json").read_text())
    assert pointer["digest"] == deployed.release.digest
    folder = Path(deployed.release.publications[0].uri)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(file["path"] for file in manifest["files"]) == sorted(
        path.name for path in folder.iterdir() if path.name != "manifest.json"
    )
    marker = place.folder / "store" / "deliveries" / deployed.event.id / "prefect"
    assert marker.is_file()


class TestDeathWhilePublishing:
    # After a write is before the next one.
    @pytest.mark.parametrize(
        ("at", "after"), [*((at, False) for at in range(1, WRITES + 1)), (WRITES, True)]
    )
    def test_the_next_run_finishes_it_once(self, place, monkeypatch, at, after):
        with monkeypatch.context() as patch:
            dying = DyingObjects(patch, at, after)
            with pytest.raises(Died):
                place.run(name=NAME)
            assert dying.dead
        pointer = place.folder / "releases" / NAME / "latest/production.json"
        if pointer.exists():
            # What is visible is complete, even before the log announces it.
            folder = place.folder / "releases" / json.loads(pointer.read_text())["path"]
            assert (folder / "manifest.json").is_file()
        assert place.run(name=NAME).name in ("Released", "Up to date")
        check_released_once(place)
        assert place.run(name=NAME).name == "Up to date"
        check_released_once(place)

    def test_every_write_was_tried(self, place, monkeypatch):
        counting = DyingObjects(monkeypatch, at=-1, after=False)
        assert place.run(name=NAME).name == "Released"
        assert counting.count == WRITES


class FaultyObjects(DyingObjects):
    """Storage that has a fault at one write, once, and works on afterwards.

    Args:
        fault: `fails`: nothing is written, and an error says so. `loses the answer`: it is written,
            and an error comes back. `truncates`: half of a file is written, and nothing says so.
    """

    def __init__(self, monkeypatch, at: int, fault: str) -> None:
        self.fault, self.happened = fault, False
        super().__init__(monkeypatch, at, after=False)

    def _dying(self, method):
        def call(objects, path, *arguments, **options):
            with self._lock:
                # Only a file of a release is written in parts.
                self.count += self.begun and (
                    self.fault != "truncates" or method.__name__ == "upload"
                )
                due = self.count == self.at and not self.happened
                self.happened = self.happened or due
            if due and self.fault == "truncates":
                half = objects.folder / path
                half.parent.mkdir(parents=True, exist_ok=True)
                content = arguments[0].read_bytes()
                half.write_bytes(content[: len(content) // 2])
                return None
            if due and self.fault == "fails":
                raise outage(path)
            answer = method(objects, path, *arguments, **options)
            if due and self.fault == "loses the answer":
                raise outage(path)
            return answer

        return call


def outage(path: str) -> StorageFailed:
    return StorageFailed(path, "a connection that was reset", "an answer", "wait, and try again")


class TestFaultyStorage:
    @pytest.mark.parametrize(
        ("at", "fault"),
        [(at, ("fails", "loses the answer")[at // 2 % 2]) for at in range(1, WRITES + 1, 2)]
        + [(at, "truncates") for at in range(1, UPLOADS + 1)],
    )
    def test_is_survived_by_the_run_itself_or_by_the_next_one(self, place, monkeypatch, at, fault):
        monkeypatch.setenv("BURNISH_RETRY_SECONDS", "0.01")
        with monkeypatch.context() as patch:
            storage = FaultyObjects(patch, at, fault)
            state = place.run(name=NAME)
            assert storage.happened
        if state.name not in ("Released", "Up to date"):
            assert state.is_failed() and "Fix: " in state.message
            assert place.run(name=NAME).name in ("Released", "Up to date")
        check_released_once(place)
        assert damaged_artifacts(place.store) == []

    def test_that_is_slow_only_takes_longer(self, place, monkeypatch):
        for name in ("read", "write", "create", "replace", "upload", "sizes"):
            method = getattr(FolderObjects, name)

            def slow(*arguments, method=method, **options):
                time.sleep(0.02)
                return method(*arguments, **options)

            monkeypatch.setattr(FolderObjects, name, slow)
        assert place.run(name=NAME).name == "Released"
        check_released_once(place)


DIE_AFTER_THE_CLAIM = """
from tasks.release import deployment_log
claim = deployment_log.claim
def claim_and_die(*arguments):
    claim(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
deployment_log.claim = claim_and_die
"""
DIE_WHILE_COPYING_WEIGHTS = """
import shutil
copyfile = shutil.copyfile
def half(source, target, **options):
    if ".staging" in str(target) and str(source).endswith("model.safetensors"):
        open(target, "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return copyfile(source, target, **options)
shutil.copyfile = half
"""


class TestSigkill:
    @pytest.mark.parametrize(
        ("where", "log", "ends"),
        [
            (DIE_AFTER_THE_CLAIM, ["revealing"], "Up to date"),
            (DIE_WHILE_COPYING_WEIGHTS, [], "Released"),
        ],
        ids=["after the claim", "while copying weights"],
    )
    def test_the_next_run_releases_it_and_leaves_nothing_behind(self, place, where, log, ends):
        recipe = place.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(place.recipe(name=NAME).model_dump(mode="json")))
        retrain = f"from flows.cli import main; main(['retrain', {str(recipe)!r}])"
        dying = f"import os, signal\n{where}\n{retrain}"
        ended = subprocess.run([sys.executable, "-c", dying], capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        assert [entry.kind for entry in place.log(NAME)] == log
        # In another process, as the next run is: a store is swept when a process first writes.
        again = subprocess.run(
            [
                sys.executable,
                "-c",
                f"from flows.cli import main; main(['retrain', {str(recipe)!r}])",
            ],
            capture_output=True,
        )
        assert f"{NAME}: {ends}" in again.stdout.decode(), again.stderr.decode()
        check_released_once(place)
        assert left_behind(place.folder) == []


@pytest.mark.slow
class TestKilledTraining:
    def test_is_reported_and_a_retry_succeeds(self, place):
        def kill():
            (trainer,) = wait_for(lambda: training_programs(os.getpid()), "training")
            trainer.kill()

        with ThreadPoolExecutor(1) as pool:
            killed = pool.submit(kill)
            state = place.run(training__seed=5)
            killed.result()
        assert state.name == "Killed"
        assert "killed by SIGKILL" in state.message
        assert len(place.log()) == 2
        assert place.run(training__seed=5).name == "Released"
