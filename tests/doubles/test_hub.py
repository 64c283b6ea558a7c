"""The fake Hub, used through the real client."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    ModelCardData,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from tests.doubles.hub import HubServer

REPO = "ci/model"


@pytest.fixture
def api(hub_env):
    """A client with a write token, and a Hub with one empty repository."""
    hub_env.add_repo(REPO)
    yield HfApi()
    assert hub_env.unknown == []


@pytest.fixture
def no_waiting(monkeypatch):
    """Make the client retry without waiting."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def commit(api: HfApi, *operations, **options):
    options = {"repo_id": REPO, "commit_message": "a commit", **options}
    return api.create_commit(operations=list(operations), **options)


def refused(status: int):
    """Expect the client to raise an error with this HTTP status."""
    return pytest.raises(HfHubHTTPError, check=lambda error: error.response.status_code == status)


class TestIdentity:
    def test_whoami_names_the_user_and_the_role_of_the_token(self, api, hub_env):
        assert api.whoami()["name"] == hub_env.user
        reader = api.whoami(token=hub_env.read_token)
        assert reader["auth"]["accessToken"]["role"] == "read"

    def test_an_unknown_token_is_refused_even_if_none_is_needed(self, api):
        with refused(401):
            api.whoami(token="hf_bad")
        with refused(401):
            api.model_info(REPO, token="hf_bad")
        assert api.model_info(REPO, token=False).id == REPO

    def test_auth_check_distinguishes_readers_and_writers(self, api, hub_env):
        api.auth_check(REPO, write=True)
        api.auth_check(REPO, token=hub_env.read_token)
        with refused(403):
            api.auth_check(REPO, token=hub_env.read_token, write=True)

    def test_a_token_can_be_revoked(self, api, hub_env):
        del hub_env.tokens[hub_env.token]
        with refused(401):
            api.whoami()


class TestRepositories:
    @pytest.mark.parametrize("kind", ["model", "dataset"])
    def test_a_repository_is_created_and_deleted(self, api, kind):
        url = api.create_repo("ci/new", repo_type=kind)
        assert (url.repo_id, url.repo_type) == ("ci/new", kind)
        assert api.repo_info("ci/new", repo_type=kind).private is False
        api.delete_repo("ci/new", repo_type=kind)
        assert not api.repo_exists("ci/new", repo_type=kind)

    def test_an_existing_name_is_a_conflict_without_exist_ok(self, api):
        with refused(409):
            api.create_repo(REPO)
        assert api.create_repo(REPO, exist_ok=True).repo_id == REPO

    def test_a_private_repository_is_not_found_without_a_token(self, api, hub_env):
        api.create_repo("ci/secret", private=True)
        assert api.model_info("ci/secret", token=hub_env.read_token).private is True
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("ci/secret", token=False)

    def test_a_read_only_token_cannot_write(self, api, hub_env):
        reader = HfApi(token=hub_env.read_token)
        for write in (
            lambda: reader.create_repo("ci/new"),
            lambda: commit(reader, add("a", b"a")),
            lambda: reader.create_tag(REPO, tag="v1"),
            lambda: reader.delete_repo(REPO),
        ):
            with refused(403):
                write()

    def test_info_shows_the_model_card(self, api):
        data = ModelCardData(license="apache-2.0", library_name="transformers", tags=["burnish"])
        ModelCard(f"---\n{data.to_yaml()}\n---\n# A model").push_to_hub(REPO)
        info = api.model_info(REPO)
        assert info.library_name == "transformers"
        assert info.tags == ["burnish", "license:apache-2.0"]
        assert ModelCard.load(REPO).data.license == "apache-2.0"


class TestCommits:
    def test_add_replace_and_delete_files_at_once(self, api, hub_env):
        commit(api, add("a", b"1"), add("sub/b", b"2"), add("old/c", b"3"))
        delete = [CommitOperationDelete("sub/b"), CommitOperationDelete("old/")]
        made = commit(api, add("a", b"4"), *delete)
        files = hub_env.files(REPO)
        assert files.pop(".gitattributes")
        assert files == {"a": b"4"}
        assert api.model_info(REPO).sha == made.oid

    def test_a_commit_on_a_stale_parent_is_refused(self, api, hub_env):
        parent = api.model_info(REPO).sha
        commit(api, add("a", b"mine"), parent_commit=parent)
        with refused(412):
            commit(api, add("a", b"theirs"), parent_commit=parent)
        assert hub_env.files(REPO)["a"] == b"mine"

    def test_one_of_two_concurrent_publishers_wins(self, api, hub_env):
        parent = api.model_info(REPO).sha

        def the_other():
            commit(HfApi(), add("a", b"theirs"), parent_commit=parent)

        hub_env.on_next("POST", "/commit/", the_other)
        with refused(412):
            commit(api, add("a", b"mine"), parent_commit=parent)
        assert hub_env.files(REPO)["a"] == b"theirs"

    def test_equal_contents_create_no_commit(self, api):
        first = commit(api, add("a", b"1"), add("model.safetensors", b"2"))
        again = commit(api, add("a", b"1"), add("model.safetensors", b"2"))
        assert again.oid == first.oid

    def test_history_is_listed_newest_first(self, api):
        commit(api, add("a", b"1"), commit_message="one", commit_description="why")
        commit(api, add("a", b"2"), commit_message="two")
        history = api.list_repo_commits(REPO)
        assert [entry.title for entry in history] == ["two", "one", "initial commit"]
        assert history[1].message == "why"

    def test_deleting_a_missing_file_is_an_error(self, api):
        with pytest.raises(EntryNotFoundError):
            commit(api, CommitOperationDelete("nothing"))


class TestLargeFiles:
    def test_equal_contents_are_uploaded_once(self, api, hub_env):
        commit(api, add("model.safetensors", b"weights"))
        commit(api, add("copy.safetensors", b"weights"))
        assert sum(line.startswith("PUT /lfs") for line in hub_env.requests) == 1
        assert hub_env.files(REPO)["copy.safetensors"] == b"weights"
        assert api.get_paths_info(REPO, "model.safetensors")[0].lfs.size == len(b"weights")

    def test_large_contents_are_uploaded_in_parts(self, api, hub_env):
        content = os.urandom(2 * hub_env.lfs_part_bytes + 1)
        commit(api, add("model.safetensors", content))
        parts = [line for line in hub_env.requests if line.startswith("PUT /lfs")]
        assert len(parts) == 3
        assert hub_env.files(REPO)["model.safetensors"] == content

    def test_a_file_cannot_be_committed_before_its_upload(self, api, hub_env):
        hub_env.on_next("POST", "/commit/", hub_env.blobs.clear)
        with refused(400):
            commit(api, add("model.safetensors", b"weights"))

    def test_the_download_host_never_receives_the_token(self, api, hub_env):
        commit(api, add("model.safetensors", b"weights"))
        url = huggingface_hub.hf_hub_url(REPO, "model.safetensors")
        metadata = huggingface_hub.get_hf_file_metadata(url)
        assert metadata.commit_hash == api.model_info(REPO).sha
        assert metadata.location.startswith("http://localhost:")

    def test_a_range_can_be_downloaded(self, api):
        commit(api, add("model.safetensors", b"weights"))
        url = huggingface_hub.hf_hub_url(REPO, "model.safetensors")
        answer = get_session().get(url, headers={"Range": "bytes=2-4"})
        assert (answer.status_code, answer.content) == (206, b"igh")


class TestFiles:
    @pytest.fixture(autouse=True)
    def some_files(self, api):
        commit(api, add("a", b"1"), add("sub/b", b"22"), add("sub/deep/c.bin", b"333"))

    def test_tree_lists_a_folder_or_everything_in_it(self, api):
        def paths(*args, **kwargs):
            return {entry.path for entry in api.list_repo_tree(REPO, *args, **kwargs)}

        assert paths() == {".gitattributes", "a", "sub"}
        assert paths("sub") == {"sub/b", "sub/deep"}
        assert paths("sub", recursive=True) == {"sub/b", "sub/deep", "sub/deep/c.bin"}
        with pytest.raises(EntryNotFoundError):
            paths("nothing")

    def test_paths_info_skips_missing_paths(self, api):
        found = api.get_paths_info(REPO, ["a", "sub", "nothing"])
        assert {entry.path for entry in found} == {"a", "sub"}

    def test_one_file_can_be_downloaded(self, api):
        assert Path(hf_hub_download(REPO, "sub/b")).read_bytes() == b"22"
        assert Path(hf_hub_download(REPO, "sub/deep/c.bin")).read_bytes() == b"333"
        with pytest.raises(EntryNotFoundError):
            hf_hub_download(REPO, "nothing")

    def test_a_snapshot_contains_one_revision(self, api):
        api.create_tag(REPO, tag="v1")
        commit(api, add("a", b"changed"), CommitOperationDelete("sub/b"))
        old, new = Path(snapshot_download(REPO, revision="v1")), Path(snapshot_download(REPO))
        assert (old / "a").read_bytes() == b"1"
        assert (new / "a").read_bytes() == b"changed"
        assert (old / "sub/b").exists() and not (new / "sub/b").exists()

    def test_files_are_read_through_the_file_system(self, api):
        assert HfFileSystem().cat_file(f"{REPO}/sub/b") == b"22"
        assert HfFileSystem().cat_file(f"{REPO}/sub/deep/c.bin", start=1) == b"33"

    def test_a_dataset_has_its_own_urls(self, api, hub_env):
        hub_env.add_repo("ci/data", {"train.jsonl": "{}", "x.parquet": b"P"}, kind="dataset")
        folder = Path(snapshot_download("ci/data", repo_type="dataset"))
        assert (folder / "train.jsonl").read_text() == "{}"
        assert (folder / "x.parquet").read_bytes() == b"P"
        assert api.dataset_info("ci/data").id == "ci/data"
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("ci/data")


class TestTagsAndBranches:
    def test_a_tag_keeps_its_commit(self, api):
        first = api.model_info(REPO).sha
        api.create_tag(REPO, tag="v1/candidate", tag_message="first")
        commit(api, add("a", b"1"))
        assert api.model_info(REPO, revision="v1/candidate").sha == first
        (tag,) = api.list_repo_refs(REPO).tags
        assert (tag.name, tag.target_commit) == ("v1/candidate", first)

    def test_an_existing_tag_is_a_conflict_even_for_the_same_commit(self, api):
        api.create_tag(REPO, tag="v1")
        with refused(409):
            api.create_tag(REPO, tag="v1")
        api.create_tag(REPO, tag="v1", exist_ok=True)

    def test_a_deleted_tag_is_gone(self, api):
        api.create_tag(REPO, tag="v1")
        api.delete_tag(REPO, tag="v1")
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision="v1")

    def test_a_branch_has_its_own_commits(self, api, hub_env):
        api.create_branch(REPO, branch="next")
        commit(api, add("a", b"1"), revision="next")
        assert "a" in hub_env.files(REPO, "next")
        assert "a" not in hub_env.files(REPO)
        api.delete_branch(REPO, branch="next")
        assert not api.revision_exists(REPO, "next")


class TestFaults:
    def test_a_planned_error_applies_once_and_changes_nothing(self, api, hub_env):
        hub_env.fail_next("POST", r"/commit/", status=500)
        with refused(500):
            commit(api, add("a", b"1"))
        assert "a" not in hub_env.files(REPO)
        commit(api, add("a", b"1"))
        assert "a" in hub_env.files(REPO)

    def test_an_applied_commit_can_lose_its_response(self, api, hub_env):
        hub_env.fail_next("POST", r"/commit/", status=504, applied=True)
        with refused(504):
            commit(api, add("a", b"1"))
        assert hub_env.files(REPO)["a"] == b"1"

    @pytest.mark.parametrize("applied", [False, True])
    def test_a_connection_can_break_before_or_during_the_response(self, api, hub_env, applied):
        hub_env.drop_next("POST", r"/commit/", applied=applied)
        with pytest.raises(httpx2.RemoteProtocolError):
            commit(api, add("a", b"1"))
        assert ("a" in hub_env.files(REPO)) is applied

    def test_a_broken_download_is_resumed(self, api, hub_env, no_waiting):
        content = os.urandom(300_000)
        commit(api, add("model.safetensors", content))
        hub_env.drop_next("GET", r"^/lfs/", applied=True)
        assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == content
        assert sum(line.startswith("GET /lfs/") for line in hub_env.requests) == 2

    def test_a_failed_upload_is_retried(self, api, hub_env, no_waiting):
        hub_env.fail_next("PUT", r"^/lfs/", status=503, times=2)
        commit(api, add("model.safetensors", b"weights"))
        assert sum(line.startswith("PUT /lfs/") for line in hub_env.requests) == 3

    def test_a_restarted_hub_keeps_its_repositories(self, no_waiting):
        with HubServer() as server:
            api = HfApi(endpoint=server.endpoint, token=server.token)
            api.create_repo(REPO)
            server.stop()
            with pytest.raises(httpx2.NetworkError):
                api.model_info(REPO)
            server.start()
            assert api.model_info(REPO).id == REPO

    def test_servers_are_independent(self):
        with HubServer() as one, HubServer() as other:
            HfApi(endpoint=one.endpoint, token=one.token).create_repo(REPO)
            assert not HfApi(endpoint=other.endpoint).repo_exists(REPO)


class TestXet:
    def test_large_files_go_to_xet_storage_and_back(self, tmp_path):
        program = """
            import os, pathlib, sys
            from tests.doubles.xet import XetHubServer

            with XetHubServer(pathlib.Path(sys.argv[1]) / "cas") as hub:
                os.environ["HF_ENDPOINT"], os.environ["HF_TOKEN"] = hub.endpoint, hub.token
                from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

                contents = os.urandom(300_000)
                hub.add_repo("ci/model")
                files = {"config.json": b"{}", "model.safetensors": contents}
                parent = HfApi().model_info("ci/model").sha
                operations = [CommitOperationAdd(*file) for file in files.items()]
                HfApi().create_commit(
                    "ci/model", operations, commit_message="xet", parent_commit=parent
                )
                (info,) = HfApi().get_paths_info("ci/model", "model.safetensors")
                assert info.xet_hash
                file = pathlib.Path(hf_hub_download("ci/model", "model.safetensors"))
                assert file.read_bytes() == contents
                assert not [line for line in hub.requests if "/lfs" in line], hub.requests
        """
        env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "0"}
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
            env=env,
            cwd=Path(__file__).parents[2],
            check=True,
            timeout=60,
        )
