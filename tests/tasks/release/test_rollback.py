"""An earlier release is deployed again, and the one that was left stays away until it is lifted."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tasks.contracts.errors import BadRequest, BaselineMoved, NotFound
from tasks.release import deployment_log, holds
from tasks.release.announce import announce
from tasks.release.provenance import publish_settings
from tasks.release.publish import finish, missing_targets, open_targets
from tasks.release.rollback import roll_back
from tests.tasks.release.samples import MODEL

REPO = "ci/tiny"
WHY = ("Ada", "it swears at customers")


@pytest.fixture
def back(context):
    """Rolls back, in a new run unless one is named."""
    numbers = itertools.count()

    def back(to="", by=WHY[0], reason=WHY[1], run=""):
        run = run or f"tiny-rollback-{next(numbers)}"
        return roll_back(*MODEL, to, by, reason, context.model_copy(update={"run_name": run}))

    return back


def deployed(store):
    return deployment_log.deployed(store, *MODEL).release


def pointer(folder) -> str:
    """The version that a folder's pointer names."""
    return json.loads(Path(folder, "tiny/latest/production.json").read_text())["version"]


class TestRollback:
    @pytest.fixture(params=["folder", "s3", "hub"])
    def targets(self, request, tmp_path):
        if request.param == "folder":
            return (str(tmp_path / "releases"),)
        if request.param == "s3":
            return (f"s3://{request.getfixturevalue('s3_env')}/releases",)
        request.getfixturevalue("hub_env")
        return (f"hf://{REPO}",)

    def test_returns_to_the_release_before_at_every_kind_of_target(self, deploy, store, back):
        first, second = deploy(b"one"), deploy(b"two")
        entry = back()
        settings = publish_settings(first.release, store)
        assert entry.release.digest == first.release.digest
        assert deployed(store).digest == first.release.digest
        assert not missing_targets(first.release, settings)
        assert missing_targets(second.release, settings)
        (target,) = open_targets(settings)
        if target.uri.startswith("hf://"):
            main = {item.path: item.blob_id for item in HfApi().list_repo_tree(REPO)}
            tag = HfApi().list_repo_tree(REPO, revision=f"production-{first.release.version}")
            assert main == {item.path: item.blob_id for item in tag}

    def test_and_the_next_release_takes_its_place(self, deploy, store, back):
        deploy(b"one")
        deploy(b"two")
        back()
        third = deploy(b"three")
        assert deployed(store).digest == third.release.digest
        assert not missing_targets(third.release, publish_settings(third.release, store))


class TestItsEntry:
    def test_says_who_why_and_what_was_undone(self, deploy, store, back):
        _, second = deploy(b"one"), deploy(b"two")
        entry = back()
        kinds = [each.kind for each in deployment_log.entries(store, *MODEL, after=4)]
        assert kinds == ["quarantined", "revealing", "deployed"]
        assert (entry.cause, entry.by, entry.reason) == ("rollback", *WHY)
        assert entry.undone == second.number

    def test_has_an_event_like_any_other(self, deploy, back):
        first, second = deploy(b"one"), deploy(b"two")
        event = back().event
        assert event.type == first.event.type
        assert event.data.publications == first.event.data.publications
        assert event.data.previous == second.release.version
        assert (event.data.cause, event.data.by, event.data.reason) == ("rollback", *WHY)
        assert len({event.id, first.event.id, second.event.id}) == 3

    def test_of_a_to_b_to_a_to_b_each_has_an_event_of_its_own(self, deploy, store, back):
        _, second = deploy(b"one"), deploy(b"two")
        back()
        holds.lift(store, "tiny", second.release.version, "Ada", "it was the prompt")
        back(second.release.version)
        entries = [e for e in deployment_log.entries(store, *MODEL) if e.kind == "deployed"]
        assert len({entry.event.id for entry in entries}) == len(entries) == 4
        assert deployed(store).digest == second.release.digest


class TestTheChoice:
    def test_of_a_version_by_its_beginning(self, deploy, store, back):
        first = deploy(b"one")
        deploy(b"two")
        deploy(b"three")
        assert back(first.release.version[:6]).release.digest == first.release.digest

    def test_passes_over_what_is_quarantined(self, deploy, back):
        first = deploy(b"one")
        deploy(b"two")
        deploy(b"three")
        back()
        assert back().release.digest == first.release.digest

    def test_without_an_earlier_release_is_refused(self, deploy, back, store):
        deploy(b"one")
        with pytest.raises(BadRequest, match="no earlier release"):
            back()
        assert not deployment_log.head(store, *MODEL).quarantined

    def test_of_the_deployed_version_is_refused(self, deploy, back):
        first, second = deploy(b"one"), deploy(b"two")
        with pytest.raises(BadRequest, match=f"choose one of {first.release.version}"):
            back(second.release.version)

    def test_of_a_quarantined_version_is_refused(self, deploy, back):
        _, second = deploy(b"one"), deploy(b"two")
        back()
        with pytest.raises(BadRequest, match=f"burnish lift tiny {second.release.version}"):
            back(second.release.version)

    def test_of_a_model_without_a_log_is_refused(self, back):
        with pytest.raises(NotFound, match="no deployment log"):
            back()


class TestInterruptions:
    def test_the_same_command_goes_on(self, deploy, store, back, monkeypatch):
        first, _ = deploy(b"one"), deploy(b"two")
        with monkeypatch.context() as patch:
            patch.setattr("tasks.release.rollback.finish_now", _fail)
            with pytest.raises(OSError):
                back()
        assert deployed(store).digest != first.release.digest
        assert back().release.digest == first.release.digest
        kinds = [each.kind for each in deployment_log.entries(store, *MODEL, after=4)]
        assert kinds == ["quarantined", "revealing", "deployed"]

    def test_a_run_that_had_done_it_does_not_go_back_further_when_it_is_retried(
        self, deploy, store, back
    ):
        deploy(b"one")
        second = deploy(b"two")
        deploy(b"three")
        entry = back(run="doomed")
        assert entry.release.digest == second.release.digest
        assert back(run="doomed") == entry
        assert deployment_log.head(store, *MODEL).number == entry.number

    def test_nor_does_one_that_another_run_has_finished(
        self, deploy, store, back, context, monkeypatch
    ):
        deploy(b"one")
        second = deploy(b"two")
        deploy(b"three")
        with monkeypatch.context() as patch:
            patch.setattr("tasks.release.rollback.finish_now", _fail)
            with pytest.raises(OSError):
                back(run="doomed")
        claim = deployment_log.head(store, *MODEL)
        finished = announce.fn(finish.fn(claim, context), context)
        assert finished.cause == "rollback"
        assert back(run="doomed").release.digest == second.release.digest
        assert deployment_log.head(store, *MODEL).number == finished.number

    def test_a_release_that_is_being_revealed_is_taken_back(
        self, deploy, store, back, targets, context
    ):
        first = deploy(b"one")
        claim = deploy(b"two", announced=False)
        assert pointer(targets[0]) == claim.release.version
        entry = back()
        assert entry.undone == claim.number
        assert entry.release.digest == first.release.digest
        assert pointer(targets[0]) == first.release.version
        with pytest.raises(BaselineMoved):
            announce.fn(claim, context)

    def test_a_target_that_only_the_left_release_has_is_taken_back_too(
        self, deploy, back, tmp_path
    ):
        first = deploy(b"one")
        other = str(tmp_path / "other")
        deploy(b"two", targets=(other,))
        back()
        assert pointer(other) == first.release.version

    def test_files_that_the_store_lost_are_fetched_from_where_they_were_published(
        self, deploy, store, back, tmp_path
    ):
        first, _ = deploy(b"one"), deploy(b"two")
        shutil.rmtree(tmp_path / "store" / "artifacts" / "model" / first.release.artifact.digest)
        assert back().release.digest == first.release.digest


class TestAQuarantine:
    def test_holds_on_every_channel(self, deploy, store, back):
        _, second = deploy(b"one"), deploy(b"two")
        back()
        found = holds.quarantine_of(store, "tiny", second.release.digest)
        assert (found.by, found.reason, found.version) == (*WHY, second.release.version)
        assert "channel" not in type(found).model_fields

    def test_stands_until_it_is_lifted(self, deploy, store, back):
        _, second = deploy(b"one"), deploy(b"two")
        back()
        deploy(b"three")
        assert holds.quarantine_of(store, "tiny", second.release.digest)
        holds.lift(store, "tiny", second.release.version[:5], "Bo", "it was the prompt")
        assert holds.quarantine_of(store, "tiny", second.release.digest) is None
        newest = deployment_log.head(store, *MODEL)
        assert (newest.kind, newest.by, newest.release.digest) == (
            "lifted",
            "Bo",
            second.release.digest,
        )

    def test_that_is_not_there_cannot_be_lifted(self, deploy, store):
        deploy(b"one")
        with pytest.raises(NotFound, match="nothing is to be lifted"):
            holds.lift(store, "tiny", "abc", "Bo", "why not")


class TestAFreeze:
    def test_ends_the_right_to_reveal_of_who_read_the_log_before(self, deploy, store):
        number = deploy(b"one").number
        holds.freeze(store, *MODEL, "Ada", "a holiday")
        with pytest.raises(BaselineMoved):
            deployment_log.claim(store, deployed(store), number, "late")

    def test_stands_until_it_ends(self, deploy, store):
        deploy(b"one")
        holds.freeze(store, *MODEL, "Ada", "a holiday")
        assert holds.freeze_of(store, *MODEL).by == "Ada"
        with pytest.raises(BadRequest, match="that Ada froze it"):
            holds.freeze(store, *MODEL, "Bo", "too")
        holds.unfreeze(store, *MODEL, "Bo", "back")
        assert holds.freeze_of(store, *MODEL) is None
        with pytest.raises(BadRequest, match="not frozen"):
            holds.unfreeze(store, *MODEL, "Bo", "again")

    def test_does_not_keep_a_person_from_rolling_back(self, deploy, store, back):
        first, _ = deploy(b"one"), deploy(b"two")
        holds.freeze(store, *MODEL, "Ada", "a holiday")
        assert back().release.digest == first.release.digest
        assert holds.freeze_of(store, *MODEL)

    def test_is_refused_while_a_release_is_being_revealed(self, deploy, store):
        deploy(b"one", announced=False)
        with pytest.raises(BadRequest, match="is being revealed"):
            holds.freeze(store, *MODEL, "Ada", "a holiday")

    def test_of_a_model_without_a_log_is_refused(self, store):
        with pytest.raises(NotFound):
            holds.freeze(store, *MODEL, "Ada", "a holiday")


class TestReaders:
    def test_skip_entries_of_kinds_that_they_do_not_know(self, deploy, store):
        first = deploy(b"one")
        newer = first.model_copy(update={"number": 3, "kind": "blessed", "event": None})
        values = newer.model_dump(mode="json") | {"holy": True}
        store.objects.write(deployment_log.entry_path(*MODEL, 3), json.dumps(values).encode())
        assert deployed(store).digest == first.release.digest
        assert deploy(b"two").number == 5


def _fail(*_):
    raise OSError("killed")
