"""A digest cache for each test, and objects in a folder and on S3."""

from pathlib import Path

import pytest

from tasks.storage.objects import FolderObjects, S3Objects
from tests.tasks.samples import write_files


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "data"
    write_files(root, {"a.jsonl": b"1\n", "b.jsonl": b"2\n", "sub/c.jsonl": b"3\n"})
    return root


@pytest.fixture(params=["folder", "s3"])
def objects(request, tmp_path):
    if request.param == "folder":
        return FolderObjects(tmp_path / "store")
    return S3Objects(f"s3://{request.getfixturevalue('s3_env')}/some/prefix")
