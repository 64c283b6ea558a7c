"""The store: complete or absent, verified when read, in a folder and in S3 alike."""

import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.contracts.errors import BadRecipe, DamagedArtifact, NoAccess, NotFound
from tasks.storage import store as stores
from tasks.storage.objects import FolderObjects, S3Objects, open_objects
from tasks.storage.store import Store, manifest_digest


@pytest.fixture(params=["folder", "s3"])
def objects(request, tmp_path):
    if request.param == "folder":
        return FolderObjects(tmp_path / "store")
    return S3Objects(f"s3://{request.getfixturevalue('s3_env')}/some/prefix")


@pytest.fixture
def store(objects):
    return Store(objects)


def folder_with(path, **files):
    for name, text in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


class TestObjects:
    def test_what_is_written_is_read(self, objects):
        objects.write("a/b", b"one")
        assert objects.read("a/b")[0] == b"one"

    def test_nothing_is_none(self, objects):
        assert objects.read("a/b") is None

    def test_only_the_first_creation_wins(self, objects):
        assert objects.create("a", b"one")
        assert not objects.create("a", b"two")
        assert objects.read("a")[0] == b"one"

    def test_of_many_racing_creations_one_wins(self, objects):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n: objects.create("race", b"%d" % n), range(8)))
        assert won.count(True) == 1
        assert objects.read("race")[0] == b"%d" % won.index(True)

    def test_replacing_needs_the_tag_that_is_there(self, objects):
        assert objects.replace("p", b"one", None)
        _, first = objects.read("p")
        assert not objects.replace("p", b"late", None)
        assert objects.replace("p", b"two", first)
        assert not objects.replace("p", b"three", first)
        assert objects.read("p")[0] == b"two"

    def test_sizes_lists_what_begins_with_the_prefix(self, objects):
        for path in ("x/1", "x/y/2", "xx", "z"):
            objects.write(path, path.encode())
        assert objects.sizes("x/") == {"x/1": 3, "x/y/2": 5}
        assert set(objects.sizes("x")) == {"x/1", "x/y/2", "xx"}

    def test_a_download_of_nothing_says_so(self, objects, tmp_path):
        with pytest.raises(NotFound):
            objects.download("nothing", tmp_path / "x")

    def test_deleting_nothing_is_fine(self, objects):
        objects.delete("nothing")


class TestArtifacts:
    def test_the_digest_is_of_the_content_not_of_the_place(self, store, tmp_path):
        one = store.put("k", folder_with(tmp_path / "a", x="1", y__z="2"))
        two = store.put("k", folder_with(tmp_path / "b", x="1", y__z="2"))
        assert (one.digest, one.files, one.bytes) == (two.digest, 2, 2)

    def test_a_renamed_file_is_another_artifact(self, store, tmp_path):
        one = store.put("k", folder_with(tmp_path / "a", x="1"))
        two = store.put("k", folder_with(tmp_path / "b", y="1"))
        assert one.digest != two.digest

    def test_it_is_read_back_whole(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1", y__z="2"))
        opened = store.open(artifact)
        assert (opened / "x").read_text() == "1"
        assert (opened / "y/z").read_text() == "2"

    def test_without_its_manifest_it_is_absent(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1"))
        store.objects.delete(f"artifacts/k/{artifact.digest}/manifest.json")
        assert not store.holds(artifact)
        with pytest.raises(DamagedArtifact, match="no manifest"):
            store.open(artifact)

    def test_a_missing_file_is_noticed_without_reading(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1", y="2"))
        store.objects.delete(f"artifacts/k/{artifact.digest}/files/x")
        assert not store.holds(artifact)

    def test_a_changed_file_is_noticed_by_the_reader(self, store, tmp_path):
        artifact = store.put("k", folder_with(tmp_path / "a", x="1"))
        store.objects.write(f"artifacts/k/{artifact.digest}/files/x", b"2")
        assert store.holds(artifact)
        with pytest.raises(DamagedArtifact, match="file x that was changed"):
            store.open(artifact)

    def test_a_manifest_of_something_else_is_noticed(self, store, tmp_path):
        one = store.put("k", folder_with(tmp_path / "a", x="1"))
        two = store.put("k", folder_with(tmp_path / "b", x="2"))
        path = "artifacts/k/{}/manifest.json".format
        store.objects.write(path(one.digest), store.objects.read(path(two.digest))[0])
        assert not store.holds(one)

    def test_a_discarded_one_can_be_made_again(self, store, tmp_path):
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

    def test_is_removed_afterwards(self, store):
        with store.scratch() as folder:
            (folder / "x").write_text("x")
        assert list((folder.parent).iterdir()) == []

    def test_a_sweep_that_meets_one_being_made_takes_nothing_from_it(self, store, monkeypatch):
        lock = fcntl.flock

        def swept_first(file, how):
            if how == fcntl.LOCK_EX:
                stores._sweep(Path(store.uri) / "scratch")
            lock(file, how)

        monkeypatch.setattr(stores.fcntl, "flock", swept_first)
        with store.scratch() as folder:
            (folder / "file").write_text("kept")
        assert not folder.exists()

    def test_what_is_in_use_is_left_alone(self, store):
        with store.scratch() as first, store.scratch():
            assert first.is_dir()

    def test_what_a_killed_process_left_is_swept_up(self, store):
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


class TestErrors:
    def test_wrong_credentials_are_no_access(self, s3_env, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(NoAccess, match="access denied"):
            S3Objects(f"s3://{s3_env}/p").write("a", b"")

    def test_a_bucket_that_does_not_exist_is_said_to(self, s3_env):
        with pytest.raises(NotFound, match="no such bucket"):
            S3Objects("s3://there-is-no-such-bucket/p").read("a")

    def test_a_read_only_identity_cannot_write(self, s3, s3_env, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader_access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader_secret_key)
        with pytest.raises(NoAccess):
            S3Objects(f"s3://{s3_env}/p").write("a", b"")

    def test_a_folder_under_a_file_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(Exception, match="expected a folder that can be written"):
            FolderObjects(tmp_path / "file").write("a", b"")

    def test_an_unknown_scheme_is_refused(self):
        with pytest.raises(BadRecipe):
            open_objects("gs://bucket")
