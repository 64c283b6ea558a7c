"""Byte objects, in a folder and on S3 alike: atomic and conditional writes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.contracts.errors import BadRecipe, NotFound
from tasks.storage.objects import FolderObjects, open_objects


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

    def test_deleting_a_missing_object_is_allowed(self, objects):
        objects.delete("nothing")


class TestErrors:
    def test_a_folder_inside_a_file_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(Exception, match="expected a writable folder"):
            FolderObjects(tmp_path / "file").write("a", b"")

    def test_an_unknown_scheme_is_refused(self):
        with pytest.raises(BadRecipe):
            open_objects("gs://bucket")
