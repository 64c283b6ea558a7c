"""Which earlier release is the anchor."""

import pytest

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BadRecipe
from tasks.contracts.release import Deployment, DeploymentEvent, LogEntry, Release
from tasks.contracts.verdict import AnchorState, RuleOutcome
from tasks.release import deployment_log
from tasks.release.anchor import anchor_of
from tasks.release.holds import quarantine
from tasks.storage.store import open_store
from tests.tasks.release.conftest import VERDICT
from tests.tasks.samples import run_context


@pytest.fixture
def store(tmp_path):
    return open_store(run_context(tmp_path).store)


def release(version):
    artifact = Artifact(kind="model", digest=version * 4, files=1, bytes=1, uri="x")
    return Release(
        name="news",
        channel="production",
        version=version,
        digest=version * 4,
        artifact=artifact,
        provenance=artifact,
    )


def deploy(store, version, anchor=None, task="text-classification", metric="accuracy"):
    """Append a deployment; `anchor` is (entry, why it moves), or None for an old verdict."""
    claim = RuleOutcome(rule="not worse", name="", metric=metric, passed=True, sentence="")
    state = anchor and AnchorState(version="v", entry=anchor[0], moves=anchor[1])
    event = DeploymentEvent(
        specversion="1.0",
        id="1",
        source="s",
        type="t",
        subject="s",
        time="now",
        data=Deployment(
            model="news",
            channel="production",
            task=task,
            version=version,
            digest=version * 4,
            publications=(),
            recipe_digest="r",
            metrics={},
            baseline_metrics={},
            verdict=VERDICT.model_copy(update={"rules": (claim,), "anchor": state}),
            provenance="p",
            previous=None,
        ),
    )
    newest = deployment_log.head(store, "news", "production")
    following = deployment_log.following(
        newest, "deployed", "run", release=release(version), event=event
    )
    return deployment_log.append(store, following)


def version_of(store, deployed, chosen="first"):
    anchor = anchor_of(store, deployed, chosen)
    return anchor and anchor.release.version


FIRST = (0, "it is the first release")
STAYS, MOVES = (1, ""), (1, "it is better")


class TestFirst:
    def test_release_is_its_own_anchor(self, store):
        assert version_of(store, deploy(store, "aaaa", FIRST)) == "aaaa"

    def test_release_stays_the_anchor_of_later_ones(self, store):
        deploy(store, "aaaa", FIRST)
        deploy(store, "bbbb", STAYS)
        assert version_of(store, deploy(store, "cccc", STAYS)) == "aaaa"

    def test_release_gives_way_to_a_better_one(self, store):
        deploy(store, "aaaa", FIRST)
        deploy(store, "bbbb", MOVES)
        assert version_of(store, deploy(store, "cccc", (2, ""))) == "bbbb"

    def test_after_a_rollback_it_is_that_of_the_release_before(self, store):
        deploy(store, "aaaa", FIRST)
        deploy(store, "bbbb", STAYS)
        deploy(store, "cccc", MOVES)
        # A rollback deploys the release before with its own verdict.
        assert version_of(store, deploy(store, "bbbb", STAYS)) == "aaaa"

    def test_a_quarantined_one_gives_way_to_the_one_before(self, store):
        deploy(store, "aaaa", FIRST)
        bad = deploy(store, "bbbb", MOVES)
        deployed = deploy(store, "cccc", (2, ""))
        newest = deployment_log.head(store, "news", "production")
        quarantine(store, bad, newest, "ada", "wrong", "")
        assert version_of(store, deployed) == "aaaa"

    def test_if_all_are_quarantined_it_is_what_is_deployed(self, store):
        first = deploy(store, "aaaa", FIRST)
        deployed = deploy(store, "bbbb", STAYS)
        newest = deployment_log.head(store, "news", "production")
        quarantine(store, first, newest, "ada", "wrong", "")
        assert version_of(store, deployed) == "bbbb"

    def test_of_a_log_without_anchors_it_is_the_oldest_of_the_same_kind(self, store):
        deploy(store, "aaaa", metric="f1")
        deploy(store, "bbbb")
        deploy(store, "cccc")
        assert version_of(store, deploy(store, "dddd")) == "bbbb"
        deploy(store, "eeee", task="completion")
        assert version_of(store, deploy(store, "ffff")) == "ffff"


class TestChosen:
    def test_none_is_none(self, store):
        assert anchor_of(store, deploy(store, "aaaa", FIRST), "none") is None

    def test_a_version_is_that_release(self, store):
        deploy(store, "aaaa", FIRST)
        deploy(store, "bbbb", MOVES)
        deployed = deploy(store, "cccc", (2, ""))
        assert version_of(store, deployed, "aa") == "aaaa"

    def test_an_unknown_version_is_refused_with_those_there_are(self, store):
        deploy(store, "aaaa", FIRST)
        deployed = deploy(store, "bbbb", STAYS)
        with pytest.raises(BadRecipe, match="choose one of bbbb, aaaa") as caught:
            anchor_of(store, deployed, "zz")
        assert caught.value.where == "gate.anchor"

    def test_a_quarantined_version_is_refused(self, store):
        first = deploy(store, "aaaa", FIRST)
        deployed = deploy(store, "bbbb", STAYS)
        quarantine(store, first, deployment_log.head(store, "news", "production"), "ada", "x", "")
        with pytest.raises(BadRecipe, match="which is quarantined"):
            anchor_of(store, deployed, "aaaa")


def test_entries_of_an_unknown_kind_are_no_anchors(store):
    deploy(store, "aaaa")
    odd = deployment_log.following(
        deployment_log.head(store, "news", "production"), "odd", "run", release=release("oddd")
    )
    deployment_log.append(store, odd)
    assert isinstance(odd, LogEntry)
    assert version_of(store, deploy(store, "bbbb")) == "aaaa"
