"""The deployment log: entries are numbered and created once, and consumers need nothing else."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BaselineMoved, StorageFailed
from tasks.contracts.release import LogEntry, Release
from tasks.release import deployment_log
from tasks.storage.objects import FolderObjects, S3Objects
from tasks.storage.store import Store


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    if request.param == "folder":
        return Store(FolderObjects(tmp_path))
    return Store(S3Objects(f"s3://{request.getfixturevalue('s3_env')}/store"))


def release(digest):
    artifact = Artifact(kind="model", digest=digest, files=1, bytes=1, uri="x")
    return Release(
        name="news",
        channel="production",
        version=digest[:12],
        digest=digest,
        artifact=artifact,
        provenance=artifact,
    )


def entry(number, kind, digest):
    return LogEntry(number=number, kind=kind, at="now", run="run", release=release(digest))


def deploy(store, digest, log_number):
    claim = deployment_log.claim(store, release(digest), log_number, "run")
    return deployment_log.append(store, entry(claim.number + 1, "deployed", digest))


class TestLog:
    def test_an_empty_log_has_no_head(self, store):
        assert deployment_log.head(store, "news", "production") is None
        assert deployment_log.deployed(store, "news", "production") is None

    def test_entries_come_in_order_and_after_a_number(self, store):
        deploy(store, "a", 0)
        deploy(store, "b", 2)
        numbers = [item.number for item in deployment_log.entries(store, "news", "production")]
        assert numbers == [1, 2, 3, 4]
        assert [
            item.number for item in deployment_log.entries(store, "news", "production", after=3)
        ] == [4]

    def test_what_is_deployed_is_the_newest_deployment_not_a_claim(self, store):
        deploy(store, "a", 0)
        deployment_log.claim(store, release("b"), 2, "run")
        assert deployment_log.deployed(store, "news", "production").release.digest == "a"

    def test_a_number_is_given_once(self, store):
        deployment_log.append(store, entry(1, "revealing", "a"))
        with pytest.raises(BaselineMoved):
            deployment_log.append(store, entry(1, "revealing", "b"))


class TestClaims:
    def test_a_claim_after_the_log_has_grown_is_refused(self, store):
        deploy(store, "a", 0)
        with pytest.raises(BaselineMoved, match="expected the log as it was"):
            deployment_log.claim(store, release("b"), 0, "run")

    def test_a_repeated_claim_for_the_same_release_is_the_same_claim(self, store):
        first = deployment_log.claim(store, release("a"), 0, "run")
        assert deployment_log.claim(store, release("a"), 0, "again").number == first.number
        assert len(deployment_log.entries(store, "news", "production")) == 1

    def test_an_interrupted_claim_is_replaced_by_a_publisher_that_read_it(self, store):
        deployment_log.claim(store, release("a"), 0, "died")
        assert deployment_log.claim(store, release("b"), 1, "run").number == 2

    def test_a_publisher_that_was_replaced_cannot_announce(self, store):
        slow = deployment_log.claim(store, release("a"), 0, "slow")
        deployment_log.claim(store, release("b"), 1, "fast")
        with pytest.raises(BaselineMoved):
            deployment_log.append(store, entry(slow.number + 1, "deployed", "a"))

    def test_of_racing_publishers_one_claims(self, store):
        def try_claim(digest):
            try:
                return deployment_log.claim(store, release(digest), 0, digest).release.digest
            except BaselineMoved:
                return None

        with ThreadPoolExecutor(6) as pool:
            won = [item for item in pool.map(try_claim, "abcdef") if item]
        assert len(won) == 1
        assert deployment_log.head(store, "news", "production").release.digest == won[0]


class TestDamage:
    @pytest.mark.parametrize("content", [b"", b"{", b"\0" * 40, b"[]", b'{"number": 1}'])
    def test_of_an_entry_is_named_with_what_to_do(self, store, content):
        deployment_log.claim(store, release("a"), 0, "run")
        path = "logs/news/production/00000001.json"
        store.objects.write(path, content)
        for read in (deployment_log.head, deployment_log.deployed, deployment_log.entries):
            with pytest.raises(StorageFailed, match=path) as caught:
                read(store, "news", "production")
            assert "restore this file from a backup" in caught.value.fix

    @pytest.mark.parametrize("name", [".DS_Store", "00000001.json.bak", "notes.txt", "1.json"])
    def test_other_files_are_no_entries(self, store, name):
        entry = deployment_log.claim(store, release("a"), 0, "run")
        store.objects.write(f"logs/news/production/{name}", b"anything")
        assert deployment_log.entries(store, "news", "production") == [entry]
