"""Deployment events reach Prefect once, in order, and none is lost."""

from __future__ import annotations

import base64
import json

import pytest
from prefect.client.orchestration import get_client
from standardwebhooks import Webhook, WebhookVerificationError

from tasks.contracts.errors import NoAccess
from tasks.contracts.recipe_release import PublishRecipe
from tasks.contracts.verdict import RuleOutcome
from tasks.release import delivery, deployment_log
from tasks.release.announce import announce
from tasks.release.delivery import (
    MAX_PAYLOAD_BYTES,
    deliver_owed,
    event_payload,
    owed,
    set_webhooks,
)
from tasks.release.publish import publish
from tasks.release.webhooks import SECRET_VARIABLE, webhook_secret
from tests.doubles.receiver import Receiver
from tests.tasks.release.samples import send_nowhere
from tests.waiting import wait_for

SECRET = "whsec_" + base64.b64encode(b"planted secret of thirty-two byt").decode()


@pytest.fixture
def away(monkeypatch):
    """Prefect's API cannot be reached."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")

    def fail(entry, context):
        raise ConnectionError("no route to the API")

    monkeypatch.setattr(delivery, "send", fail)


@pytest.fixture
def deploy(publishable, context):
    """Deploys the next release; returns its log entry."""

    def deploy(**changes):
        newest = deployment_log.head(delivery.open_store(context.store), "tiny", "production")
        number = newest.number if newest else 0
        return announce.fn(
            publish.fn(publishable(PublishRecipe(), log_number=number, **changes), context), context
        )

    return deploy


class TestDeliverOwed:
    def test_sends_an_event_once(self, deploy, context, monkeypatch):
        sent = send_nowhere(monkeypatch)
        entry = deploy()
        assert sent == [entry]
        assert deliver_owed("tiny", "production", context) == []
        assert sent == [entry]

    def test_a_failure_leaves_it_owed_and_the_release_deployed(
        self, deploy, context, store, away, monkeypatch
    ):
        entry = deploy()
        assert deployment_log.deployed(store, "tiny", "production") == entry
        assert deliver_owed("tiny", "production", context) == []
        sent = send_nowhere(monkeypatch)
        assert deliver_owed("tiny", "production", context) == [entry] == sent

    def test_a_death_between_confirmation_and_marker_sends_the_same_event_again(
        self, deploy, context, store, monkeypatch
    ):
        sent = send_nowhere(monkeypatch)
        entry = deploy()
        store.objects.delete(f"deliveries/{entry.event.id}/prefect")
        assert deliver_owed("tiny", "production", context) == [entry]
        assert [each.event.id for each in sent] == [entry.event.id] * 2

    def test_the_server_has_the_event_when_it_returns(self, deploy, prefect_env):
        event = deploy().event

        def stored():
            filter_ = {"filter": {"id": {"id": [event.id]}}}
            with get_client(sync_client=True) as client:
                return client.request("POST", "/events/filter", json=filter_).json()["events"]

        [found] = wait_for(stored, f"event {event.id}")
        assert found["payload"]["data"]["digest"] == event.data.digest
        assert found["resource"]["prefect.resource.id"] == "burnish.model.tiny.production"


class TestWebhooks:
    @pytest.fixture
    def receiver(self, store, monkeypatch):
        monkeypatch.setenv(SECRET_VARIABLE, SECRET)
        receiver = Receiver()
        set_webhooks(store, "tiny", "production", [receiver.url])
        yield receiver
        receiver.close()

    def test_get_each_event_once_signed_as_the_standard_says(
        self, deploy, context, receiver, monkeypatch
    ):
        send_nowhere(monkeypatch)
        entry = deploy()
        assert deliver_owed("tiny", "production", context) == []
        ((headers, body),) = receiver.received
        # By the library of the standard's authors; it checks the time, too.
        verified = Webhook(SECRET).verify(body, headers)
        assert verified["data"]["digest"] == entry.release.digest
        assert headers["webhook-id"] == entry.event.id
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body.replace(b"tiny", b"fake"), headers)

    def test_that_refuse_are_owed_it_and_prefect_is_not(
        self, deploy, context, store, receiver, monkeypatch
    ):
        sent = send_nowhere(monkeypatch)
        receiver.status = 503
        entry = deploy()
        (still,) = owed(store, "tiny", "production")
        assert (still.entry, still.receivers) == (entry, (receiver.url,))
        assert "has not reached the webhook at 127.0.0.1" in still.sentence
        assert "/hook" not in still.sentence
        receiver.status = 200
        assert deliver_owed("tiny", "production", context) == [entry] == sent
        assert owed(store, "tiny", "production") == []

    def test_that_are_new_are_owed_nothing_that_was_before(
        self, deploy, store, receiver, monkeypatch
    ):
        send_nowhere(monkeypatch)
        deploy()
        other = Receiver()
        set_webhooks(store, "tiny", "production", [receiver.url, other.url])
        assert owed(store, "tiny", "production") == []
        deploy(weights=b"other")
        assert (len(receiver.received), len(other.received)) == (2, 1)
        other.close()

    @pytest.mark.parametrize("secret", ["", "whsec_", "whsec_short", "no base64 at all!"])
    def test_without_a_secret_are_refused_early(self, secret, monkeypatch):
        monkeypatch.setenv(SECRET_VARIABLE, secret)
        with pytest.raises(NoAccess, match=SECRET_VARIABLE) as caught:
            webhook_secret()
        assert "short" not in str(caught.value) and "at all" not in str(caught.value)


class TestPayload:
    def test_of_an_event_that_is_too_large_lacks_the_rules(self, deploy, monkeypatch):
        send_nowhere(monkeypatch)
        event = deploy().event
        facts = {"rule": "floor", "name": "r", "metric": "loss", "passed": True}
        rule = RuleOutcome(**facts, vetoes=True, sentence="x" * MAX_PAYLOAD_BYTES)
        verdict = event.data.verdict.model_copy(update={"rules": (rule,)})
        data = event.data.model_copy(update={"verdict": verdict})
        payload = event_payload(event.model_copy(update={"data": data}))
        assert payload["data"]["verdict"]["rules"] == []
        assert len(json.dumps(payload)) < MAX_PAYLOAD_BYTES
