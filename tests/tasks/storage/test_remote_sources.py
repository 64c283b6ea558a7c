"""Sources on S3 and on the Hub: listing, pinning and fetching."""

from __future__ import annotations

import boto3
import pytest

from tasks.contracts.errors import BadModel, NotFound, StorageFailed
from tasks.storage.sources import fetch_file, fetch_folder, resolve
from tests.tasks.samples import DATA_FILES, MODEL_FILES, source_paths, write_files


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
        assert source_paths(resolve(f"s3://{bucket}/d", "data")) == ["a.jsonl", "sub/b.jsonl"]
        assert source_paths(resolve(f"s3://{bucket}/d/", "data")) == ["a.jsonl", "sub/b.jsonl"]
        assert source_paths(resolve(f"s3://{bucket}/d/a.jsonl", "data")) == ["a.jsonl"]
        assert source_paths(resolve(f"s3://{bucket}/d*/*.jsonl", "data")) == [
            "d/a.jsonl",
            "d/sub/b.jsonl",
            "dx/c.jsonl",
        ]
        assert len(resolve(f"s3://{bucket}", "data").files) == 3

    def test_task_files_are_fetched_with_their_data_and_without_python(self, s3_env, tmp_path):
        names = ["ships.yaml", "ships.jsonl", "utils.py", ".env"]
        for name in names:
            boto3.client("s3").put_object(Bucket=s3_env, Key=f"own/{name}", Body=b"x")
        source = resolve(f"s3://{s3_env}/own", "tasks")
        assert source_paths(source) == ["ships.jsonl", "ships.yaml"]
        assert sorted(each.name for each in fetch_folder(source, tmp_path / "s").iterdir()) == [
            "ships.jsonl",
            "ships.yaml",
        ]
        # A local folder belongs to the user, so its Python files are trusted.
        write_files(tmp_path / "own", dict.fromkeys(names, b"x"))
        found = resolve(str(tmp_path / "own"), "tasks")
        assert source_paths(found) == ["ships.jsonl", "ships.yaml", "utils.py"]

    def test_the_digest_follows_the_content(self, bucket):
        before = resolve(f"s3://{bucket}/d", "data")
        assert resolve(f"s3://{bucket}/d", "data") == before
        boto3.client("s3").put_object(Bucket=bucket, Key="d/a.jsonl", Body=b"9\n")
        assert resolve(f"s3://{bucket}/d", "data").digest != before.digest

    def test_fetching_an_object(self, bucket, tmp_path):
        file = resolve(f"s3://{bucket}/d", "data").files[1]
        assert fetch_file(file, tmp_path).read_bytes() == b"2\n"

    def test_an_object_that_changed_since_is_refused(self, bucket, tmp_path):
        [file] = resolve(f"s3://{bucket}/d/a.jsonl", "data").files
        boto3.client("s3").put_object(Bucket=bucket, Key="d/a.jsonl", Body=b"9\n")
        with pytest.raises(StorageFailed, match="changed after the run began"):
            fetch_file(file, tmp_path)

    def test_a_model(self, bucket, tmp_path):
        for name, data in MODEL_FILES.items():
            boto3.client("s3").put_object(Bucket=bucket, Key=f"m/{name}", Body=data)
        folder = fetch_folder(resolve(f"s3://{bucket}/m", "model"), tmp_path)
        names = {file.name for file in folder.iterdir()}
        assert names == {"config.json", "model.safetensors", "tokenizer.json"}

    def test_missing_buckets_and_objects(self, bucket):
        with pytest.raises(NotFound, match="no such bucket"):
            resolve("s3://no-such-bucket-here/x", "data")
        with pytest.raises(NotFound, match="no object with this name"):
            resolve(f"s3://{bucket}/nothing", "data")
        with pytest.raises(NotFound, match="no matching object"):
            resolve(f"s3://{bucket}/d/*.csv", "data")


class TestHub:
    def test_data_at_a_revision(self, hub_env, tmp_path):
        hub_env.add_repo("ci/news", DATA_FILES, kind="dataset")
        source = resolve("hf://ci/news", "data")
        assert source_paths(source) == ["test.jsonl", "train.jsonl"]
        assert fetch_file(source.files[1], tmp_path).read_bytes() == b"1\n"
        commit = source.pinned.rpartition("@")[2]
        assert source.pinned == f"hf://datasets/ci/news@{commit}"
        assert len(commit) == 40
        assert resolve(f"hf://ci/news@{commit}", "data").digest == source.digest
        assert resolve(source.pinned, "data").digest == source.digest

    def test_a_path_and_a_glob(self, hub_env):
        files = {"en/train.jsonl": b"1\n", "en/test.jsonl": b"2\n", "de/train.jsonl": b"3\n"}
        hub_env.add_repo("ci/news", files, kind="dataset")
        assert source_paths(resolve("hf://ci/news@main/en", "data")) == [
            "test.jsonl",
            "train.jsonl",
        ]
        assert source_paths(resolve("hf://ci/news@main/en/test.jsonl", "data")) == ["test.jsonl"]
        assert source_paths(resolve("hf://ci/news/*/train.jsonl", "data")) == [
            "de/train.jsonl",
            "en/train.jsonl",
        ]
        with pytest.raises(NotFound, match="no file 'fr' at revision main"):
            resolve("hf://ci/news@main/fr", "data")

    def test_large_files_have_the_digest_of_their_content(self, hub_env, tmp_path):
        hub_env.add_repo("ci/news", {"a.parquet": b"PAR1"}, kind="dataset")
        write_files(tmp_path, {"a.parquet": b"PAR1"})
        [on_hub] = resolve("hf://ci/news", "data").files
        [local] = resolve(str(tmp_path / "a.parquet"), "data").files
        assert on_hub.digest == local.digest

    def test_a_moved_branch_has_another_digest(self, hub_env, tmp_path):
        hub_env.add_repo("ci/news", DATA_FILES, kind="dataset")
        before = resolve("hf://ci/news@main", "data")
        hub_env.add_repo("ci/news", {**DATA_FILES, "train.jsonl": b"9\n"}, kind="dataset")
        assert resolve("hf://ci/news@main", "data").digest != before.digest

    def test_a_model(self, hub_env, tmp_path):
        hub_env.add_repo("ci/model", {**MODEL_FILES, "pytorch_model.bin": b"pickle"})
        folder = fetch_folder(resolve("hf://ci/model@main", "model"), tmp_path)
        names = {file.name for file in folder.iterdir()}
        assert names == {"config.json", "model.safetensors", "tokenizer.json"}
        assert (folder / "model.safetensors").read_bytes() == b"weights"

    def test_pickled_weights_are_refused(self, hub_env):
        hub_env.add_repo("ci/model", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
        with pytest.raises(BadModel, match="pickled weights only"):
            resolve("hf://ci/model", "model")

    def test_an_unknown_revision_lists_the_existing_ones(self, hub_env):
        hub_env.add_repo("ci/news", DATA_FILES, kind="dataset")
        with pytest.raises(NotFound, match="no revision 'v9' in ci/news; it has main"):
            resolve("hf://ci/news@v9", "data")

    def test_an_unknown_repository(self, hub_env):
        with pytest.raises(NotFound, match="no dataset repository 'ci/nothing'"):
            resolve("hf://ci/nothing", "data")

    def test_a_dataset_is_not_a_model(self, hub_env):
        hub_env.add_repo("ci/news", DATA_FILES, kind="dataset")
        with pytest.raises(NotFound, match="no model repository 'ci/news'"):
            resolve("hf://ci/news", "model")

    def test_a_private_repository_without_a_token(self, hub_env, monkeypatch):
        hub_env.add_repo("ci/secret", DATA_FILES, kind="dataset", private=True)
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
        with pytest.raises(NotFound, match="set HF_TOKEN if it is private"):
            resolve("hf://ci/secret", "data")
