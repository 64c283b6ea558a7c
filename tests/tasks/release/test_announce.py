"""Announcing: the log entry, and an event that is delivered once."""

from __future__ import annotations

import json

import pytest

from tasks.contracts.recipe_release import PublishRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.release import announce as announce_module
from tasks.release import deployment_log
from tasks.release.announce import MAX_PAYLOAD_BYTES, announce, deliver
from tasks.release.publish import publish
from tests.tasks.samples import run_context


@pytest.fixture
def context(tmp_path):
    return run_context(tmp_path, run_name="calm-otter")


@pytest.fixture
def events(monkeypatch):
    """The events that were emitted."""
    emitted = []
    monkeypatch.setattr(announce_module, "emit_event", lambda **event: emitted.append(event))
    return emitted


@pytest.fixture
def claim(publishable, context):
    return publish.fn(publishable(PublishRecipe()), context)


class TestAnnounce:
    def test_enters_the_release_and_delivers_its_event(self, claim, store, context, events):
        entry = announce.fn(claim, context)
        assert deployment_log.deployed(store, "tiny", "production") == entry
        assert (entry.number, entry.event.data.recipe_digest) == (2, "of recipe")
        (event,) = events
        assert str(event["id"]) == entry.event.id
        assert event["payload"]["data"]["digest"] == claim.release.digest

    def test_delivers_an_event_once(self, claim, store, context, events):
        entry = announce.fn(claim, context)
        assert not deliver(entry, context)
        store.objects.delete(f"deliveries/{entry.event.id}/prefect")
        assert deliver(entry, context)
        assert [event["id"] for event in events] == [events[0]["id"]] * 2

    def test_leaves_out_the_rules_of_an_event_that_is_too_large(self, claim, context, events):
        entry = announce.fn(claim, context)
        facts = {"rule": "floor", "name": "r", "metric": "loss", "passed": True}
        rule = RuleOutcome(**facts, vetoes=True, sentence="x" * MAX_PAYLOAD_BYTES)
        verdict = entry.event.data.verdict.model_copy(update={"rules": (rule,)})
        data = entry.event.data.model_copy(update={"verdict": verdict})
        event = entry.event.model_copy(update={"data": data, "id": entry.event.id[:-1] + "0"})
        assert deliver(entry.model_copy(update={"event": event}), context)
        payload = events[-1]["payload"]
        assert payload["data"]["verdict"]["rules"] == []
        assert len(json.dumps(payload)) < MAX_PAYLOAD_BYTES
