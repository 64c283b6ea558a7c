"""A base that is a GGUF file: converted once, and used in place of the file."""

from __future__ import annotations

import pytest

from tasks.base_model import gguf_step
from tasks.base_model.gguf_step import (
    GgufInputs,
    convert_gguf,
    converted_source,
    is_gguf,
    trainable_source,
)
from tasks.contracts.artifacts import Source
from tasks.contracts.errors import BadModel
from tasks.storage.sources import fetch_folder, resolve
from tasks.storage.store import open_store
from tests.tasks.base_model.gguf_files import write_gguf
from tests.tasks.samples import run_context


class TestASourceWithGguf:
    def test_is_the_file_alone(self, tmp_path):
        write_gguf(tmp_path / "m" / "model-q8.gguf")
        for name in ("README.md", "config.json", "mmproj-f16.gguf"):
            (tmp_path / "m" / name).write_text("{}")
        source = resolve(str(tmp_path / "m"), "model")
        assert [file.path for file in source.files] == ["model-q8.gguf"]
        assert resolve(source.pinned, "model").digest == source.digest

    def test_is_left_alone_where_there_are_safetensors(self, tmp_path):
        for name in ("model.gguf", "model.safetensors", "config.json"):
            (tmp_path / name).write_text("{}")
        source = resolve(str(tmp_path), "model")
        assert [file.path for file in source.files] == ["config.json", "model.safetensors"]
        assert trainable_source(source, run_context(tmp_path)) is source

    def test_must_be_one_of_them(self, tmp_path):
        for name in ("m-Q4.gguf", "m-Q8.gguf"):
            (tmp_path / name).write_text("")
        with pytest.raises(BadModel, match="2 GGUF files") as caught:
            resolve(str(tmp_path), "model")
        assert "name one of them" in caught.value.fix
        assert is_gguf(resolve(str(tmp_path / "m-Q8.gguf"), "model"))

    def test_may_be_its_parts(self, tmp_path):
        for number in (1, 2):
            (tmp_path / f"m-0000{number}-of-00002.gguf").write_text("")
        assert len(resolve(str(tmp_path), "model").files) == 2


@pytest.fixture
def source(tmp_path) -> Source:
    return resolve(str(write_gguf(tmp_path / "m.gguf")), "model")


class TestConverting:
    def test_is_done_once(self, source, tmp_path, monkeypatch):
        where = run_context(tmp_path)
        first = convert_gguf.once(GgufInputs(model=source), where)
        monkeypatch.setattr(gguf_step, "run_program", None)
        assert convert_gguf.once(GgufInputs(model=source), where) == first
        assert (first.artifact.kind, first.dtype) == ("base", "float32")

    def test_stands_in_for_the_file(self, source, tmp_path):
        where = run_context(tmp_path)
        artifact = convert_gguf.once(GgufInputs(model=source), where).artifact
        found = converted_source(source, artifact, where)
        assert (found.uri, found.pinned) == (source.uri, source.pinned)
        assert found.digest == artifact.digest != source.digest
        folder = fetch_folder(found, tmp_path / "scratch")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            path.name for path in folder.iterdir()
        }

    def test_works_with_a_store_on_s3(self, source, tmp_path, s3_env):
        where = run_context(tmp_path).model_copy(update={"store": f"s3://{s3_env}/store"})
        artifact = convert_gguf.once(GgufInputs(model=source), where).artifact
        found = converted_source(source, artifact, where)
        folder = fetch_folder(found, tmp_path / "scratch")
        assert folder.is_relative_to(tmp_path / "scratch")
        for entry in open_store(where.store).manifest(artifact).files:
            assert (folder / entry.path).stat().st_size == entry.size
