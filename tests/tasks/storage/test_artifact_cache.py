"""A worker keeps what it fetched from a remote store and what it made, up to a size."""

import os
import subprocess
import sys

import pytest

from tasks.contracts.errors import DamagedArtifact
from tasks.storage.artifact_cache import SIZE_VARIABLE, VARIABLE, ArtifactCache
from tasks.storage.objects import S3Objects, open_objects
from tasks.storage.store import Store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_bytes(b"w" * 1000)
    return folder


@pytest.fixture
def downloads(monkeypatch):
    """What is downloaded from S3."""
    found = []
    download = S3Objects.download

    def noting(self, path, file):
        found.append(path)
        download(self, path, file)

    monkeypatch.setattr(S3Objects, "download", noting)
    return found


class TestAStoreOnS3:
    def store(self, bucket):
        """As another process opens it."""
        return Store(open_objects(f"s3://{bucket}/store"))

    def test_is_read_once_by_all_processes(self, s3_env, files, folder, downloads, monkeypatch):
        with monkeypatch.context() as without:
            without.delenv(VARIABLE)
            artifact = self.store(s3_env).put("model", files)
        for _ in range(2):
            found = self.store(s3_env).open(artifact)
            assert (found / "sub" / "weights").read_bytes() == b"w" * 1000
        assert len(downloads) == 1

    def test_is_not_read_for_what_this_worker_made(self, s3_env, files, folder, downloads):
        artifact = self.store(s3_env).put("model", files)
        assert (self.store(s3_env).open(artifact) / "sub" / "weights").is_file()
        assert downloads == []

    def test_is_read_again_if_the_copy_was_changed(self, s3_env, files, folder, downloads):
        artifact = self.store(s3_env).put("model", files)
        copy = folder / artifact.digest / "sub" / "weights"
        copy.unlink()
        copy.write_bytes(b"x" * 1000)
        found = self.store(s3_env).open(artifact)
        assert (found / "sub" / "weights").read_bytes() == b"w" * 1000 and len(downloads) == 1

    def test_decides_whether_an_artifact_is_there(self, s3_env, files, folder):
        artifact = self.store(s3_env).put("model", files)
        self.store(s3_env).discard("model", artifact.digest)
        with pytest.raises(DamagedArtifact, match="no manifest"):
            self.store(s3_env).open(artifact)

    def test_keeps_nothing_of_an_artifact_that_is_damaged(self, s3_env, files, folder, monkeypatch):
        with monkeypatch.context() as without:
            without.delenv(VARIABLE)
            store = self.store(s3_env)
            artifact = store.put("model", files)
            store.objects.write(f"artifacts/model/{artifact.digest}/files/sub/weights", b"y" * 1000)
        with pytest.raises(DamagedArtifact, match="the changed file sub/weights"):
            self.store(s3_env).open(artifact)
        assert not (folder / artifact.digest).exists()

    def test_without_a_cache_leaves_nothing_behind(self, s3_env, files, tmp_path, monkeypatch):
        monkeypatch.delenv(VARIABLE, raising=False)
        self.store(s3_env).put("model", files)
        assert not (tmp_path / "cache").exists()


class TestRoom:
    def add(self, cache, name, age=0):
        folder = cache.add(name, lambda entry: (entry / "file").write_bytes(b"x" * 100))
        os.utime(folder, (1_700_000_000 - age, 1_700_000_000 - age))

    def there(self, folder):
        return sorted(each.name for each in folder.iterdir() if len(each.name) == 1)

    def test_is_made_by_what_was_not_used_for_longest(self, tmp_path):
        for name, age in (("a", 1), ("b", 3), ("c", 2)):
            self.add(ArtifactCache(tmp_path, 10**6), name, age)
        ArtifactCache(tmp_path, 10**6).get("b")
        self.add(ArtifactCache(tmp_path, 300), "d")
        assert self.there(tmp_path) == ["a", "b", "d"]

    def test_is_not_made_by_what_is_in_use(self, tmp_path):
        self.add(ArtifactCache(tmp_path, 10**6), "a", 9)
        script = (
            "import sys; from pathlib import Path;"
            "from tasks.storage.artifact_cache import ArtifactCache;"
            f"cache = ArtifactCache(Path({str(tmp_path)!r}), 1); cache.get('a');"
            "print('used', flush=True); sys.stdin.read()"
        )
        user = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert user.stdout.readline() == b"used\n"
        self.add(ArtifactCache(tmp_path, 1), "b")
        assert self.there(tmp_path) == ["a", "b"]
        user.communicate(b"")
        self.add(ArtifactCache(tmp_path, 1), "c")
        assert "a" not in self.there(tmp_path)

    def test_is_as_much_as_the_environment_says(self, s3_env, files, folder, monkeypatch):
        monkeypatch.setenv(SIZE_VARIABLE, "0.0000001")
        first = Store(open_objects(f"s3://{s3_env}/store")).put("model", files)
        (files / "more").write_bytes(b"more")
        second = Store(open_objects(f"s3://{s3_env}/store")).put("model", files)
        assert not (folder / first.digest).exists() and (folder / second.digest).exists()
