"""Alarms: put on the server once, and each reaches its webhook once."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.states import Completed

from infra.automations import ALARMS, INFORM, PAGE, main, put_alarms
from tasks.contracts.release import Hold
from tasks.release.announce import EVENT_TYPE
from tasks.runtime.prefect_api import post_event
from tasks.storage.store import open_store
from tasks.tend import alarms
from tests.doubles.receiver import Receiver
from tests.waiting import wait_for


@pytest.fixture
def receivers(prefect_env):
    made = {PAGE: Receiver(), INFORM: Receiver()}
    yield made
    for each in made.values():
        each.close()


@pytest.fixture
def put(receivers):
    """Puts the alarms on the server; away again at the end."""
    urls = {urgency: each.url for urgency, each in receivers.items()}
    yield lambda **options: put_alarms(urls, **options)
    for each in ours():
        with get_client(sync_client=True) as client:
            client.request("DELETE", f"/automations/{each['id']}")


def ours() -> list[dict]:
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/automations/filter", json={}).json()
    return [each for each in found if each["name"].startswith(("burnish page", "burnish inform"))]


class TestAutomations:
    def test_are_made_once_and_stay_off_if_a_person_put_them_off(self, put):
        assert len(put()) == len(ours()) == len(ALARMS)
        (first, *_) = ours()
        with get_client(sync_client=True) as client:
            client.request("PATCH", f"/automations/{first['id']}", json={"enabled": False})
        put()
        assert len(ours()) == len(ALARMS)
        assert [each["name"] for each in ours() if not each["enabled"]] == [first["name"]]

    def test_want_to_know_whom_to_call(self, capsys, monkeypatch):
        monkeypatch.delenv("BURNISH_PAGE_URL", raising=False)
        for arguments, said in (([], "--page: found no URL"), (["--page", "x"], "expected a URL")):
            with pytest.raises(SystemExit):
                main(arguments)
            assert said in capsys.readouterr().err


class TestAlarms:
    def test_each_reaches_its_webhook_once(self, put, receivers, tmp_path):
        put(absent=timedelta(hours=1))
        store, name = open_store(str(tmp_path / "store")), f"news-{uuid4().hex[:8]}"
        run = (str(uuid4()), "news-calm-otter")
        for _ in range(2):  # Whoever looks again finds it sent.
            alarms.alarm_failures(store, name, "Hub", [run, run])
            alarms.alarm_approval(store, name, "production", 'Waits: "quotes"', "a key", run)
            held = Hold(by="Ada", reason="a holiday", at="2026-11-27T03:00:00+00:00")
            alarms.inform_held(store, name, "production", held, "It is frozen.", run)
        release(name)
        rejected(name)

        def texts(urgency):
            return sorted(each["text"] for each in receivers[urgency].bodies)

        wait_for(lambda: len(texts(PAGE)) >= 2 and len(texts(INFORM)) >= 3, "all webhooks", 60)
        assert texts(PAGE) == [
            'Waits: "quotes"',
            f"{name}: Hub, 2 times within a day. The page of run news-calm-otter says what to do.",
        ]
        said = {f"{name}: version abc is deployed on production", "It is frozen."}
        # Of the two that were rejected, only our own run.
        (ours,) = set(texts(INFORM)) - said
        assert ours.endswith(": Rejected. accuracy fell") and len(texts(INFORM)) == 3
        for urgency, each in receivers.items():
            assert {body["urgency"] for body in each.bodies} == {urgency}

    def test_of_a_silent_tend_comes_without_an_event(self, put, receivers):
        put(absent=timedelta(seconds=10))

        def silent():
            return [each for each in receivers[PAGE].bodies if each["alarm"] == "tend is silent"]

        wait_for(silent, "the alarm", 120)


def release(name: str) -> None:
    data = {"model": name, "channel": "production", "version": "abc", "cause": "release"}
    resource = {"prefect.resource.id": f"burnish.model.{name}.production"}
    event = Event(event=EVENT_TYPE, resource=resource, payload={"data": data})
    with get_client(sync_client=True) as client:
        post_event(client, event)


def rejected(name: str) -> None:
    """A run of ours, and one of another flow, that end Rejected."""

    @flow(name="other")
    def other():
        return Completed(name="Rejected", message="Rejected. accuracy fell")

    other(return_state=True)
    with tags("retrain"):
        other(return_state=True)
