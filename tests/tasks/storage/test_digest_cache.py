"""The digest cache: which files are read again."""

from __future__ import annotations

import os

from tasks.storage import digest_cache
from tasks.storage.sources import resolve


class TestDigestCache:
    def test_an_unchanged_file_is_not_read_twice(self, folder, monkeypatch):
        for file in folder.rglob("*.jsonl"):
            os.utime(file, (1, 1))
        first = resolve(str(folder), "data")
        monkeypatch.setattr(digest_cache, "file_sha256", None)
        assert resolve(str(folder), "data") == first

    def test_a_recently_modified_file_is_read_again(self, folder, monkeypatch):
        resolve(str(folder), "data")
        monkeypatch.setattr(digest_cache, "file_sha256", lambda path: "read")
        assert {file.digest for file in resolve(str(folder), "data").files} == {"read"}

    def test_a_cache_folder_is_not_required(self, folder, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
        assert len(resolve(str(folder), "data").files) == 3
