"""What nobody else would notice is noticed, and a person is called once."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Completed, Crashed, Failed, Running, Suspended

from flows import tend as tend_module
from flows.deployments import HEARTBEAT_VARIABLE, deploy, existing
from flows.tend import Known, tend
from tasks.release import delivery
from tasks.runtime.run_beat import beat_path
from tasks.tend import alarms, lost_runs
from tests.flows.conftest import reports_of
from tests.flows.running import events_named, start, write_recipe
from tests.waiting import wait_for


class Tended:
    """A deployment in a place of its own, whose heartbeats are quick."""

    def __init__(self, place) -> None:
        self.place, self.name = place, f"tended-{uuid4().hex[:8]}"
        deploy(write_recipe(place.recipe(name=self.name), place.folder), store=place.store.uri)
        with get_client(sync_client=True) as client:
            made = existing(client, self.name)
            variables = made.job_variables
            variables["env"][HEARTBEAT_VARIABLE] = "0.3"
            client.update_deployment(made.id, _job_variables(variables))

    def run(self, state, **changes):
        """A run that is said to be in some state."""
        run = start(self.name, **changes)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Running(), force=True)
            if not state.is_running():
                client.set_flow_run_state(run.id, state, force=True)
        if state.is_final():
            return run
        # The server shows events late, and they are signs of life.
        event, resource = f"prefect.flow-run.{state.name}", f"prefect.flow-run.{run.id}"
        wait_for(lambda: events_named(event, resource), "the state's event")
        time.sleep(1)
        return run


def _job_variables(variables):
    from prefect.client.schemas.actions import DeploymentUpdate

    return DeploymentUpdate(job_variables=variables)


def state_of(run):
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run.id).state


@pytest.fixture
def tended(place, monkeypatch):
    """Tended alone: other tests' deployments are on the same server."""
    made, known = Tended(place), tend_module.what_is_known

    def only_this(client):
        found = {
            key: each for key, each in known(client).deployments.items() if each.name == made.name
        }
        return Known(found, {place.store.uri: place.store})

    monkeypatch.setattr(tend_module, "what_is_known", only_this)
    return made


class TestARunWhoseMachineIsGone:
    def test_is_marked_as_crashed_with_a_report(self, tended):
        run = tended.run(Running())
        assert tend(return_state=True).is_completed()
        assert state_of(run).is_crashed()
        report = reports_of(run.id)[0]
        assert "its worker or machine is gone" in report
        assert f"`prefect flow-run retry {run.id}`" in report

    def test_is_marked_as_cancelled_if_it_was_being_cancelled(self, tended):
        run = tended.run(Cancelling())
        tend()
        assert state_of(run).is_cancelled()


class TestARunThatLives:
    def test_is_left_alone_while_its_store_hears_of_it(self, tended, monkeypatch):
        run = tended.run(Running())
        beats = iter(range(99))

        def sleep(seconds):
            tended.place.store.objects.write(beat_path(str(run.id)), str(next(beats)).encode())

        monkeypatch.setattr(
            tend_module,
            "lost_runs",
            lambda client, watched: lost_runs.lost_runs(client, watched, sleep),
        )
        tend()
        assert state_of(run).is_running()

    def test_is_left_alone_while_the_server_hears_of_it(self, tended, monkeypatch):
        run = tended.run(Running())
        heard = iter(range(99))
        monkeypatch.setattr(
            lost_runs,
            "newest_event",
            lambda client, run: {"id": str(next(heard)), "received": "2020-01-01T00:00:00Z"},
        )
        tend()
        assert state_of(run).is_running()

    def test_is_left_alone_while_it_is_suspended(self, tended):
        run = tended.run(Suspended(timeout_seconds=3600))
        tend()
        assert state_of(run).is_paused()

    def test_is_left_alone_while_the_server_is_in_trouble(self, tended, monkeypatch):
        run = tended.run(Running())

        def fail(*_):
            raise ConnectionError("no route to the API")

        monkeypatch.setattr(lost_runs, "newest_event", fail)
        began = datetime.now(UTC).isoformat()
        state = tend(return_state=True)
        assert state.is_failed() and "no route to the API" in state.message
        assert state_of(run).is_running()
        assert not [event for event in events_named(alarms.TEND_DONE) if event["received"] > began]

    def test_is_left_alone_while_its_store_cannot_be_asked(self, tended, monkeypatch):
        from tasks.contracts.errors import StorageFailed
        from tasks.storage.objects import FolderObjects

        run = tended.run(Running())

        def fail(objects, path):
            if path.startswith("runs/"):
                raise StorageFailed("store", "no answer", "one", "wait")
            return read(objects, path)

        read = FolderObjects.read
        monkeypatch.setattr(FolderObjects, "read", fail)
        tend()
        assert state_of(run).is_running()


class TestDeliveries:
    def test_that_are_owed_are_made(self, tended, monkeypatch):
        (entry,) = [each for each in tended.place.log() if each.kind == "deployed"]
        marker = f"deliveries/{entry.event.id}/prefect"
        tended.place.store.objects.delete(marker)
        assert (
            f"version {entry.release.version} of tiny is delivered"
            in tend(return_state=True).message
        )
        assert tended.place.store.objects.read(marker)

    def test_that_are_owed_for_long_call_a_person_once(self, tended, monkeypatch):
        (entry,) = [each for each in tended.place.log() if each.kind == "deployed"]
        tended.place.store.objects.delete(f"deliveries/{entry.event.id}/prefect")

        def fail(entry, context):
            raise ConnectionError("no route to the API")

        monkeypatch.setattr(delivery, "send", fail)
        resource = "burnish.model.tiny.production"
        tend()
        assert events_named(alarms.DELIVERY_OWED, resource) == []
        monkeypatch.setattr(alarms, "OWED_TOO_LONG", alarms.OWED_TOO_LONG * 0)
        tend()
        tend()
        wait_for(lambda: events_named(alarms.DELIVERY_OWED, resource), "the alarm")
        (alarm,) = events_named(alarms.DELIVERY_OWED, resource)
        assert "has not reached Prefect" in alarm["payload"]["message"]


class TestFailures:
    def alarms_of(self, tended):
        return events_named(alarms.RUN_FAILED, f"burnish.recipe.{tended.name}")

    def test_call_a_person_once_for_each_cause(self, tended):
        for _ in range(3):
            tended.run(Failed(name="Hub", message="Hub. 503"))
        tended.run(Crashed(message="killed"))
        tended.run(Completed(name="Rejected"))
        tend()
        tended.run(Failed(name="Hub", message="Hub. 503"))
        tend()
        wait_for(lambda: len(self.alarms_of(tended)) == 2, "both alarms")
        found = {each["payload"]["cause"]: each["payload"] for each in self.alarms_of(tended)}
        assert found["Hub"]["count"] == 3
        assert "Hub, 3 times within a day" in found["Hub"]["message"]
        assert found["Crashed"]["count"] == 1

    def test_that_the_watch_tries_again_call_nobody(self, tended, monkeypatch):
        from tasks.watch.records import WatchState, write_state

        run = tended.run(Failed(name="Hub", message="Hub. 503"))
        state = WatchState(run_id=str(run.id), run_name=run.name, attempts=1)
        write_state(tended.place.store, tended.name, state)
        tend()
        assert self.alarms_of(tended) == []
        write_state(tended.place.store, tended.name, state.model_copy(update={"attempts": 3}))
        tend()
        wait_for(lambda: self.alarms_of(tended), "the alarm")


class TestItself:
    def test_says_that_it_was_there(self, tended):
        tend()
        wait_for(lambda: events_named(alarms.TEND_DONE), "the event")
