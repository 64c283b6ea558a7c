"""Announcing: the log entry, and its event."""

from __future__ import annotations

import pytest

from tasks.contracts.recipe_release import PublishRecipe
from tasks.release import deployment_log
from tasks.release.announce import announce
from tasks.release.publish import publish
from tests.tasks.release.samples import send_nowhere
from tests.tasks.samples import run_context


@pytest.fixture
def context(tmp_path):
    return run_context(tmp_path, run_name="calm-otter")


@pytest.fixture
def events(monkeypatch):
    """The entries whose events were sent."""
    return send_nowhere(monkeypatch)


@pytest.fixture
def claim(publishable, context):
    return publish.fn(publishable(PublishRecipe()), context)


class TestAnnounce:
    def test_enters_the_release_and_delivers_its_event(self, claim, store, context, events):
        entry = announce.fn(claim, context)
        assert deployment_log.deployed(store, "tiny", "production") == entry
        assert (entry.number, entry.event.data.recipe_digest) == (2, "of recipe")
        assert events == [entry]
        assert entry.event.data.digest == claim.release.digest

    def test_a_release_on_two_channels_has_two_events(self, publishable, context, store, events):
        staging = publish.fn(publishable(PublishRecipe(), channel="staging"), context)
        production = publish.fn(publishable(PublishRecipe()), context)
        assert staging.release.digest == production.release.digest
        ids = {announce.fn(each, context).event.id for each in (staging, production)}
        assert len(ids) == 2 and len(events) == 2
