"""Byte objects, in a folder and on S3 alike: atomic and conditional writes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import IncompleteReadError
from botocore.response import StreamingBody

from tasks.contracts.errors import BadRecipe, NotFound, StorageFailed
from tasks.storage.objects import FolderObjects, S3Objects, open_objects


class TestObjects:
    def test_a_written_object_is_read_back(self, objects):
        objects.write("a/b", b"one")
        assert objects.read("a/b")[0] == b"one"

    def test_a_missing_object_is_none(self, objects):
        assert objects.read("a/b") is None

    def test_create_does_not_overwrite(self, objects):
        assert objects.create("a", b"one")
        assert not objects.create("a", b"two")
        assert objects.read("a")[0] == b"one"

    def test_one_of_several_concurrent_creations_wins(self, objects):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n: objects.create("race", b"%d" % n), range(8)))
        assert won.count(True) == 1
        assert objects.read("race")[0] == b"%d" % won.index(True)

    def test_replace_needs_the_current_tag(self, objects):
        assert objects.replace("p", b"one", None)
        _, first = objects.read("p")
        assert not objects.replace("p", b"late", None)
        assert objects.replace("p", b"two", first)
        assert not objects.replace("p", b"three", first)
        assert objects.read("p")[0] == b"two"

    def test_sizes_lists_objects_with_the_prefix(self, objects):
        for path in ("x/1", "x/y/2", "xx", "z"):
            objects.write(path, path.encode())
        assert objects.sizes("x/") == {"x/1": 3, "x/y/2": 5}
        assert set(objects.sizes("x")) == {"x/1", "x/y/2", "xx"}

    def test_downloading_a_missing_object_is_an_error(self, objects, tmp_path):
        with pytest.raises(NotFound):
            objects.download("nothing", tmp_path / "x")

    def test_the_hash_of_an_object_needs_no_copy(self, objects):
        objects.write("a/b", b"abc")
        assert objects.sha256("a/b") == hashlib.sha256(b"abc").hexdigest()
        assert objects.sha256("a/c") is None

    def test_an_uploaded_file_is_kept_if_asked(self, objects, tmp_path):
        (tmp_path / "model").write_bytes(b"weights")
        objects.upload("a/model", tmp_path / "model", keep=True)
        assert (tmp_path / "model").read_bytes() == objects.read("a/model")[0] == b"weights"

    def test_deleting_a_missing_object_is_allowed(self, objects):
        objects.delete("nothing")


class TestFolder:
    def test_holds_nothing_but_objects_outside_of_staging(self, tmp_path):
        objects = FolderObjects(tmp_path)
        (tmp_path / "file").write_bytes(b"3")
        objects.write("a/1", b"1")
        objects.create("a/2", b"2")
        objects.create("a/2", b"lost")
        objects.upload("a/3", tmp_path / "file")
        objects.replace("a/4", b"4", None)
        objects.replace("a/4", b"lost", None)
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == list("1234")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".staging", "a"]
        assert [path.name for path in (tmp_path / ".staging").iterdir()] == ["lock"]
        assert sorted(objects.sizes("")) == ["a/1", "a/2", "a/3", "a/4"]

    def test_a_writer_killed_in_the_middle_leaves_nothing_beside_the_objects(self, tmp_path):
        (tmp_path / "model").write_bytes(b"weights")
        code = (
            "import os, pathlib, shutil, signal\n"
            "from tasks.storage.objects import FolderObjects\n"
            "def half(source, target):\n"
            "    pathlib.Path(target).write_bytes(b'wei')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "shutil.copyfile = half\n"
            f"store = pathlib.Path({str(tmp_path / 'store')!r})\n"
            f"model = pathlib.Path({str(tmp_path / 'model')!r})\n"
            "FolderObjects(store).upload('tiny/1/model', model, keep=True)\n"
        )
        subprocess.run([sys.executable, "-c", code])
        home, staging = tmp_path / "store" / "tiny" / "1", tmp_path / "store" / ".staging"
        assert list(home.iterdir()) == []
        assert len(list(staging.iterdir())) == 1
        FolderObjects(tmp_path / "store").write("tiny/1/other", b"x")
        assert list(staging.iterdir()) == []

    def test_a_promise_is_on_disk_before_it_has_its_name(self, tmp_path, monkeypatch):
        calls, fsync, replace = [], os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda file: calls.append("flush") or fsync(file))
        monkeypatch.setattr(os, "replace", lambda *names: calls.append("name") or replace(*names))
        objects = FolderObjects(tmp_path)
        objects.write("record", b"1")
        calls.clear()
        objects.write("record", b"2")
        assert calls == ["flush", "name", "flush"]

    def test_a_full_disk_is_storage(self, tmp_path, monkeypatch):
        def full(source, target):
            raise OSError(errno.ENOSPC, "No space left on device")

        (tmp_path / "model").write_bytes(b"x" * 2_000_000)
        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(StorageFailed, match=r"no disk space.*room for 2\.0 MB"):
            FolderObjects(tmp_path / "store").upload("a", tmp_path / "model", keep=True)

    def test_a_file_from_another_disk_is_copied(self, tmp_path, monkeypatch):
        replace, model = os.replace, tmp_path / "model"

        def other_disk(source, target):
            if source == model:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            replace(source, target)

        model.write_bytes(b"weights")
        monkeypatch.setattr(os, "replace", other_disk)
        objects = FolderObjects(tmp_path / "store")
        objects.upload("a/model", model)
        assert objects.read("a/model")[0] == b"weights"


class TestErrors:
    def test_a_folder_inside_a_file_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(Exception, match="expected a writable folder"):
            FolderObjects(tmp_path / "file").write("a", b"")

    def test_an_unknown_scheme_is_refused(self):
        with pytest.raises(BadRecipe):
            open_objects("gs://bucket")


class TestAnAnswerThatBreaksOff:
    @pytest.fixture
    def broken(self, s3_env, monkeypatch):
        """Objects on S3 with one object, and how many of the next answers break off."""
        objects = S3Objects(f"s3://{s3_env}/prefix")
        objects.write("a", b"content")
        left, read = [], StreamingBody.read

        def break_off(body, *arguments, **options):
            if left:
                left.pop()
                raise IncompleteReadError(actual_bytes=3, expected_bytes=7)
            return read(body, *arguments, **options)

        monkeypatch.setattr(StreamingBody, "read", break_off)
        return objects, left

    def test_is_asked_for_again(self, broken):
        objects, left = broken
        left += [1, 1]
        assert objects.read("a")[0] == b"content"
        left += [1]
        assert objects.sha256("a") == hashlib.sha256(b"content").hexdigest()

    def test_time_and_again_is_a_failure_of_the_storage(self, broken):
        objects, left = broken
        left += [1] * 9
        with pytest.raises(StorageFailed):
            objects.read("a")
