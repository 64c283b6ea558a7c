"""A base model that is a GGUF file is converted once, and the result replaces the file."""

from __future__ import annotations

from types import SimpleNamespace

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
from tasks.storage.sources import fetch_folder, resolve
from tasks.storage.store import open_store
from tests.tasks.base_model.gguf_files import write_gguf
from tests.tasks.samples import run_context


@pytest.fixture
def source(tmp_path) -> Source:
    return resolve(str(write_gguf(tmp_path / "m.gguf")), "model")


class TestConvertGguf:
    def test_converts_a_file_once(self, source, tmp_path, monkeypatch):
        context = run_context(tmp_path)
        first = convert_gguf.once(GgufInputs(model=source), context)
        monkeypatch.setattr(gguf_step, "run_program", None)
        assert convert_gguf.once(GgufInputs(model=source), context) == first
        assert (first.artifact.kind, first.dtype) == ("base", "float32")


class TestConvertedSource:
    def test_names_the_file_but_has_the_converted_model(self, source, tmp_path):
        context = run_context(tmp_path)
        artifact = convert_gguf.once(GgufInputs(model=source), context).artifact
        found = converted_source(source, artifact, context)
        assert (found.uri, found.pinned) == (source.uri, source.pinned)
        assert found.digest == artifact.digest != source.digest
        folder = fetch_folder(found, tmp_path / "scratch")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            path.name for path in folder.iterdir()
        }

    def test_is_fetched_from_a_store_on_s3(self, source, tmp_path, s3_env):
        context = run_context(tmp_path).model_copy(update={"store": f"s3://{s3_env}/store"})
        artifact = convert_gguf.once(GgufInputs(model=source), context).artifact
        found = converted_source(source, artifact, context)
        folder = fetch_folder(found, tmp_path / "scratch")
        assert folder.is_relative_to(tmp_path / "scratch")
        for entry in open_store(context.store).manifest(artifact).files:
            assert (folder / entry.path).stat().st_size == entry.size


class TestTrainableSource:
    def test_is_the_given_source_unless_it_is_gguf(self, tmp_path):
        (tmp_path / "model.safetensors").write_text("")
        (tmp_path / "config.json").write_text("{}")
        plain = resolve(str(tmp_path), "model")
        assert not is_gguf(plain)
        assert trainable_source(plain, run_context(tmp_path)) is plain

    def test_is_the_converted_model_if_it_is_gguf(self, source, tmp_path, monkeypatch):
        converted = SimpleNamespace(artifact="artifact")
        monkeypatch.setattr(gguf_step, "convert_gguf", lambda inputs, context: converted)
        monkeypatch.setattr(gguf_step, "converted_source", lambda *inputs: inputs)
        context = run_context(tmp_path)
        assert is_gguf(source)
        assert trainable_source(source, context) == (source, "artifact", context)
