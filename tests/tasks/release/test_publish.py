"""Publishing: at every target, finished after an interruption, and restored from a target."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.contracts.errors import BaselineMoved, StorageFailed
from tasks.contracts.recipe_release import PublishRecipe
from tasks.release import deployment_log
from tasks.release.publish import finish, missing_targets, publish, publish_missing, restore


@pytest.fixture
def settings(tmp_path):
    return PublishRecipe(targets=(str(tmp_path / "one"), str(tmp_path / "two")))


@pytest.fixture
def claim(publishable, settings, context):
    """The claim of a release that was published at both targets."""
    return publish.fn(publishable(settings), context)


class TestPublish:
    def test_reveals_model_and_card_at_every_target(self, claim, settings):
        publications = claim.release.publications
        assert [each.target for each in publications] == list(settings.targets)
        for each in publications:
            names = {path.name for path in Path(each.uri).iterdir()}
            assert names == {"model.safetensors", "README.md", "manifest.json"}

    def test_claims_the_next_number_of_the_log(self, claim, store):
        assert (claim.number, claim.kind, claim.run) == (1, "revealing", "calm-otter")
        assert deployment_log.head(store, "tiny", "production").number == 1

    def test_reveals_nothing_if_the_log_has_grown(self, publishable, settings, context, claim):
        other = publishable(settings, b"other weights")
        with pytest.raises(BaselineMoved):
            publish.fn(other, context)
        latest = Path(settings.targets[0], "tiny/latest/production.json").read_text()
        assert claim.release.digest in latest

    def test_is_finished_from_the_claim_and_the_provenance_alone(self, claim, store, context):
        targets = claim.release.publications
        for each in targets:
            shutil.rmtree(Path(each.target, "tiny"))
        bare = deployment_log.head(store, "tiny", "production")
        assert bare.release.publications == ()
        assert finish.fn(bare, context).release.publications == targets


class TestAGgufFile:
    @pytest.fixture
    def exported(self, publishable, settings, context):
        """The claim of a release with a GGUF file."""
        return publish.fn(publishable(settings, gguf=b"rounded"), context)

    def test_is_published_beside_the_model(self, exported):
        for each in exported.release.publications:
            names = {path.name for path in Path(each.uri).iterdir()}
            model = {"model.safetensors", "README.md", "manifest.json"}
            assert names == model | {"model-f16.gguf", "Modelfile"}

    def test_is_restored_with_the_model(self, exported, store, tmp_path):
        for kind in ("model", "gguf"):
            shutil.rmtree(tmp_path / "store/artifacts" / kind)
        restore(exported.release, store, private=True)
        assert store.holds(exported.release.artifact) and store.holds(exported.release.gguf)


class TestANewTarget:
    def test_gets_the_deployed_release(self, claim, settings, context, tmp_path):
        more = PublishRecipe(targets=(*settings.targets, str(tmp_path / "three")))
        (missing,) = missing_targets(claim.release, more)
        (added,) = publish_missing.fn(claim, more, context)
        assert added.target == missing.uri == str(tmp_path / "three")
        assert missing_targets(claim.release, more) == []


class TestALostModel:
    def test_is_restored_from_where_it_was_published(self, claim, store, tmp_path):
        shutil.rmtree(tmp_path / "store/artifacts/model")
        shutil.rmtree(tmp_path / "one")
        restore(claim.release, store, private=True)
        assert store.holds(claim.release.artifact)

    def test_that_is_nowhere_is_an_error(self, claim, store, tmp_path):
        for lost in ("store/artifacts/model", "one", "two"):
            shutil.rmtree(tmp_path / lost)
        with pytest.raises(StorageFailed, match="no complete copy"):
            restore(claim.release, store, private=True)
