"""The store, in a folder and on S3 alike: complete artifacts, verified when read."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.contracts.errors import DamagedArtifact
from tasks.storage.objects import FolderObjects
from tasks.storage.store import Store, manifest_digest, sweep_machine


@pytest.fixture
def store(objects):
    return Store(objects)


def folder_with(path, **files):
    for name, text in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


class TestArtifacts:
    def test_the_digest_depends_on_the_content_only(self, store, tmp_path):
        one = store.put("k", folder_with(tmp_path / "a", x="1", y__z="2"))
        two = store.put("k", folder_with(tmp_path / "b", x="1", y__z="2"))
        assert (one.digest, one.files, one.bytes) == (two.digest, 2, 2)

    def test_a_renamed_file_makes_another_artifact(self, store, tmp_path):
        one = store.put("k", folder_with(tmp_path / "a", x="1"))
        two = store.put("k", folder_with(tmp_path / "b", y="1"))
        assert one.digest != two.digest

    def test_an_artifact_is_read_back_whole(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1", y__z="2"))
        opened = store.open(artifact)
        assert (opened / "x").read_text() == "1"
        assert (opened / "y/z").read_text() == "2"

    def test_an_artifact_without_a_manifest_is_absent(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1"))
        store.objects.delete(f"artifacts/k/{artifact.digest}/manifest.json")
        assert not store.holds(artifact)
        with pytest.raises(DamagedArtifact, match="no manifest"):
            store.open(artifact)

    def test_holds_detects_a_missing_file(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1", y="2"))
        store.objects.delete(f"artifacts/k/{artifact.digest}/files/x")
        assert not store.holds(artifact)

    def test_open_detects_a_changed_file(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1"))
        store.objects.write(f"artifacts/k/{artifact.digest}/files/x", b"2")
        assert store.holds(artifact)
        with pytest.raises(DamagedArtifact, match="changed file x"):
            store.open(artifact)

    def test_another_artifacts_manifest_is_detected(self, store, tmp_path):
        one = store.put("k", folder_with(tmp_path / "a", x="1"))
        two = store.put("k", folder_with(tmp_path / "b", x="2"))
        path = "artifacts/k/{}/manifest.json".format
        store.objects.write(path(one.digest), store.objects.read(path(two.digest))[0])
        assert not store.holds(one)

    def test_a_discarded_artifact_can_be_stored_again(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1"))
        store.discard("k", artifact.digest)
        assert not store.holds(artifact)
        assert store.put("k", folder_with(tmp_path / "b", x="1")).digest == artifact.digest
        assert store.holds(artifact)

    def test_the_digest_does_not_depend_on_the_order_of_entries(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1", y="2"))
        entries = list(store.manifest(artifact).files)
        assert manifest_digest(entries[::-1]) == artifact.digest


class TestScratch:
    @pytest.fixture
    def store(self, tmp_path):
        return Store(FolderObjects(tmp_path / "store"))

    def test_a_scratch_folder_is_removed_afterwards(self, store):
        with store.scratch() as folder:
            (folder / "x").write_text("x")
        assert list((folder.parent).iterdir()) == []

    def test_a_scratch_folder_in_use_is_kept(self, store):
        with store.scratch() as first, store.scratch():
            assert first.is_dir()

    def test_the_scratch_folder_of_a_killed_process_is_removed(self, store):
        code = (
            "import os, signal; from tasks.storage.store import open_store\n"
            f"with open_store({store.uri!r}).scratch() as folder:\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        subprocess.run([sys.executable, "-c", code])
        scratch = Path(store.uri) / "scratch"
        (left,) = (path for path in scratch.iterdir() if path.is_dir())
        with store.scratch():
            assert not left.exists()

    def test_a_worker_that_starts_removes_those_of_killed_processes(
        self, store, tmp_path, monkeypatch
    ):
        cache = tmp_path / "cache"
        for name, value in (("BURNISH_STORE", store.uri), ("BURNISH_CACHE", str(cache))):
            monkeypatch.setenv(name, value)
        left = [Path(store.uri) / "scratch" / "work-a", cache / "scratch" / "work-b"]
        for folder in left:
            folder.mkdir(parents=True)
            folder.with_suffix(".lock").touch()
        sweep_machine()
        assert not any(folder.exists() for folder in left)

    def test_a_concurrent_sweep_does_not_remove_a_folder_being_created(self, store, monkeypatch):
        lock = fcntl.flock
        other = Store(FolderObjects(Path(store.uri)))
        swept = []

        def sweep_first(file, how):
            if how == fcntl.LOCK_EX and not swept:
                swept.append(file)
                with other.scratch():  # sweeps the folders of killed runs
                    pass
            lock(file, how)

        monkeypatch.setattr(fcntl, "flock", sweep_first)
        with store.scratch() as folder:
            (folder / "file").write_text("kept")
        assert swept
        assert not folder.exists()
