"""Targets: every step can be repeated, and a slower publisher never undoes a later one."""

import json

import pytest
from huggingface_hub import HfApi

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BadRecipe, BaselineMoved, BurnishError, NoAccess, StorageFailed
from tasks.contracts.release import Release
from tasks.release.targets import HubTarget, ObjectTarget, open_target

REPO = "ci/news"


def release(digest="a" * 64):
    artifact = Artifact(kind="model", digest=digest, files=1, bytes=1, uri="x")
    return Release(
        name="news",
        channel="production",
        version=digest[:12],
        digest=digest,
        artifact=artifact,
        provenance=artifact,
    )


@pytest.fixture
def folder(tmp_path):
    return files(tmp_path / "release", "weights")


def files(folder, weights):
    folder.mkdir()
    (folder / "model.safetensors").write_text(weights)
    (folder / "README.md").write_text("# news\n")
    return folder


@pytest.fixture(params=["folder", "s3", "hub"])
def target(request, tmp_path):
    if request.param == "folder":
        return ObjectTarget(str(tmp_path / "target"))
    if request.param == "s3":
        return ObjectTarget(f"s3://{request.getfixturevalue('s3_env')}/releases")
    request.getfixturevalue("hub_env")
    return HubTarget(f"hf://{REPO}", private=True)


class TestEveryTarget:
    def test_a_staged_release_is_not_yet_held(self, target, folder):
        target.check_access()
        target.stage(release(), folder)
        assert target.holds(release()) is None

    def test_a_revealed_release_is_held(self, target, folder):
        target.stage(release(), folder)
        published = target.reveal(release(), folder, 1)
        assert target.holds(release()) == published

    def test_repeating_everything_changes_nothing(self, target, folder):
        published = []
        for _ in range(3):
            target.stage(release(), folder)
            published.append(target.reveal(release(), folder, 1))
        assert published[0] == published[1] == published[2]

    def test_a_revealed_release_can_be_fetched_back(self, target, folder, tmp_path):
        target.stage(release(), folder)
        target.reveal(release(), folder, 1)
        back = tmp_path / "back"
        back.mkdir()
        target.fetch(release(), back)
        assert {path.name: path.read_bytes() for path in back.iterdir()} == {
            path.name: path.read_bytes() for path in folder.iterdir()
        }

    def test_the_next_release_takes_its_place(self, target, folder, tmp_path):
        second = files(tmp_path / "second", "other weights")
        for item, where, fence in ((release(), folder, 1), (release("b" * 64), second, 3)):
            target.stage(item, where)
            target.reveal(item, where, fence)
        assert target.holds(release("b" * 64))


class TestFolderAndBucket:
    @pytest.fixture(params=["folder", "s3"])
    def target(self, request, tmp_path):
        if request.param == "folder":
            return ObjectTarget(str(tmp_path / "target"))
        return ObjectTarget(f"s3://{request.getfixturevalue('s3_env')}/releases")

    def pointer(self, target):
        return json.loads(target.objects.read("news/latest/production.json")[0])

    def test_a_slower_publisher_does_not_undo_a_later_one(self, target, folder, tmp_path):
        late = files(tmp_path / "late", "other weights")
        target.stage(release(), folder)
        target.stage(release("b" * 64), late)
        target.reveal(release("b" * 64), late, 5)
        with pytest.raises(BaselineMoved, match="from a later publisher"):
            target.reveal(release(), folder, 3)
        assert self.pointer(target)["digest"] == "b" * 64

    def test_a_file_that_was_corrupted_in_transit_is_not_revealed(self, target, folder):
        target.stage(release(), folder)
        target.objects.write(f"news/{'a' * 12}/model.safetensors", b"corrupted")
        with pytest.raises(StorageFailed, match="bytes that differ from what was written"):
            target.reveal(release(), folder, 1)
        assert target.objects.read("news/latest/production.json") is None

    def test_an_incomplete_staging_is_not_revealed(self, target, folder):
        target.stage(release(), folder)
        target.objects.delete(f"news/{'a' * 12}/manifest.json")
        with pytest.raises(StorageFailed, match="no manifest"):
            target.reveal(release(), folder, 1)
        assert target.objects.read("news/latest/production.json") is None

    def test_an_interrupted_staging_is_resumed(self, target, folder):
        target.stage(release(), folder)
        target.objects.delete(f"news/{'a' * 12}/manifest.json")
        target.stage(release(), folder)
        target.reveal(release(), folder, 1)
        assert self.pointer(target)["version"] == "a" * 12

    @pytest.mark.parametrize("name", ["model.safetensors", "README.md", "manifest.json"])
    def test_a_release_that_lost_a_file_is_not_held_and_can_be_completed(
        self, target, folder, name
    ):
        target.stage(release(), folder)
        published = target.reveal(release(), folder, 1)
        target.objects.delete(f"news/{'a' * 12}/{name}")
        assert target.holds(release()) is None
        target.stage(release(), folder)
        assert target.reveal(release(), folder, 1) == published == target.holds(release())

    def test_a_file_that_was_cut_off_is_sent_again(self, target, folder):
        target.stage(release(), folder)
        target.reveal(release(), folder, 1)
        target.objects.write(f"news/{'a' * 12}/model.safetensors", b"wei")
        assert target.holds(release()) is None
        target.stage(release(), folder)
        assert target.objects.read(f"news/{'a' * 12}/model.safetensors")[0] == b"weights"

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\0" * 9])
    def test_a_damaged_pointer_is_rewritten(self, target, folder, content):
        target.stage(release(), folder)
        published = target.reveal(release(), folder, 1)
        target.objects.write("news/latest/production.json", content)
        assert target.holds(release()) is None
        assert target.reveal(release(), folder, 1) == published
        assert self.pointer(target)["digest"] == "a" * 64

    def test_a_damaged_manifest_is_named(self, target, folder):
        target.stage(release(), folder)
        target.objects.write(f"news/{'a' * 12}/manifest.json", b"{")
        with pytest.raises(StorageFailed, match=r"1 bytes in manifest\.json that are no manifest"):
            target.reveal(release(), folder, 1)


class TestHub:
    @pytest.fixture
    def target(self, hub_env):
        return HubTarget(f"hf://{REPO}", private=True)

    def test_one_commit_and_one_tag(self, target, folder, hub_env):
        target.stage(release(), folder)
        published = target.reveal(release(), folder, 1)
        api = HfApi()
        commits = [item.commit_id for item in api.list_repo_commits(REPO)]
        assert commits[0] == published.revision
        assert len(commits) == 2  # the repository's own first, and the release
        assert [tag.name for tag in api.list_repo_refs(REPO).tags] == [f"production-{'a' * 12}"]

    def test_files_of_the_release_before_are_removed(self, target, folder, tmp_path, hub_env):
        (folder / "old.json").write_text("{}")
        target.stage(release(), folder)
        target.reveal(release(), folder, 1)
        second = files(tmp_path / "second", "other weights")
        target.stage(release("b" * 64), second)
        target.reveal(release("b" * 64), second, 3)
        assert sorted(hub_env.files(REPO)) == [".gitattributes", "README.md", "model.safetensors"]

    def test_a_commit_whose_answer_was_lost_is_recognised(self, target, folder, hub_env):
        target.stage(release(), folder)
        hub_env.drop_next("POST", r"/commit/", applied=True)
        with pytest.raises(BurnishError):
            target.reveal(release(), folder, 1)
        target.reveal(release(), folder, 1)
        assert len(HfApi().list_repo_commits(REPO)) == 2
        assert target.holds(release())

    def test_a_missing_tag_is_added_without_a_second_commit(self, target, folder, hub_env):
        target.stage(release(), folder)
        hub_env.fail_next("POST", r"/tag/", status=500)
        with pytest.raises(BurnishError, match="HTTP status 500"):
            target.reveal(release(), folder, 1)
        assert target.holds(release()) is None
        target.reveal(release(), folder, 1)
        assert len(HfApi().list_repo_commits(REPO)) == 2

    def test_a_commit_in_between_is_noticed(self, target, folder, hub_env):
        target.stage(release(), folder)
        hub_env.on_next(
            "POST",
            r"/commit/",
            lambda: HfApi().upload_file(
                repo_id=REPO, path_in_repo="by-hand.txt", path_or_fileobj=b"x"
            ),
        )
        with pytest.raises(BaselineMoved):
            target.reveal(release(), folder, 1)
        assert target.holds(release()) is None


class TestAccess:
    def test_a_wrong_token(self, hub_env, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(NoAccess, match=r"publish\.targets hf://ci/news: found access denied"):
            HubTarget("hf://ci/news", True).check_access()

    def test_a_token_that_may_only_read(self, hub_env, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", hub_env.read_token)
        with pytest.raises(NoAccess, match="role 'read'"):
            HubTarget("hf://ci/news", True).check_access()

    def test_the_namespace_of_another_user(self, hub_env):
        with pytest.raises(NoAccess, match="right to write to other/news"):
            HubTarget("hf://other/news", True).check_access()

    def test_a_bucket_that_may_only_be_read(self, s3, s3_env, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader_access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader_secret_key)
        with pytest.raises(NoAccess):
            ObjectTarget(f"s3://{s3_env}/releases").check_access()

    @pytest.mark.parametrize("uri", ["hf://news", "hf://a/b/c", "hf://a/b@main"])
    def test_a_repository_that_is_not_one(self, uri):
        with pytest.raises(BadRecipe, match="hf://owner/name"):
            open_target(uri, True)
