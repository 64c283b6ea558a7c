"""A worker's run says that it lives, and stops once nobody waits for it."""

import time
from datetime import UTC, datetime

import pytest
from prefect.exceptions import TerminationSignal

from tasks.contracts.errors import BadModel, StorageFailed
from tasks.contracts.pool import PoolRun
from tasks.runtime import pool_run
from tasks.runtime.pool_run import PoolRunStatus, Waiters, forget_old_runs, run_path, waiters_path
from tasks.runtime.termination import check_sigterm
from tasks.storage.store import open_store
from tests.waiting import wait_for


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(pool_run, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(pool_run, "WAITER_GONE_SECONDS", 0.5)
    monkeypatch.setattr(pool_run, "NOBODY_SECONDS", 0.2)


def said(store) -> PoolRun:
    return PoolRun.model_validate(store.read_json(run_path("run")))


class TestStatus:
    def test_is_kept_up(self, store, fast):
        with PoolRunStatus(store, "run").kept_up() as status:
            status.doing("Step 1 of 2.")
            wait_for(lambda: said(store).doing == "Step 1 of 2.", "the sentence")
            before = said(store).beats
            wait_for(lambda: said(store).beats > before, "a beat")
            status.end("done")
        assert said(store).ended == "done"

    def test_carries_a_failure_with_all_that_a_report_needs(self, store):
        error = BadModel("model.uri", "a", "b", "c")
        error.kept, error.history = "step 4 was kept", [{"step": 1, "loss": 2.0}]
        PoolRunStatus(store, "run").end("failed", error)
        assert said(store).error == error.to_json() and said(store).kept == "step 4 was kept"
        assert said(store).history == ({"step": 1, "loss": 2.0},)

    def test_ends_a_run_that_nobody_waits_for(self, store, fast):
        with PoolRunStatus(store, "run").kept_up() as status:
            wait_for(lambda: status.unwanted, "the run to notice")
            with pytest.raises(TerminationSignal):
                check_sigterm()
            check_sigterm()  # Once is enough.


class TestWaiters:
    def word(self, store, name, text):
        store.objects.write(f"{waiters_path('run')}{name}.json", text.encode())

    def test_count_as_long_as_their_word_changes(self, store, fast):
        waiters = Waiters(store.objects, "run")
        for number in range(4):
            self.word(store, "one", str(number))
            self.word(store, "two", "the same")
            assert waiters.any()
            time.sleep(0.2)
        time.sleep(0.6)
        assert not waiters.any()
        self.word(store, "one", "again")
        assert waiters.any()

    def test_that_all_took_their_leave_are_not_waited_for_long(self, store, fast):
        waiters = Waiters(store.objects, "run")
        self.word(store, "one", "1")
        assert waiters.any()
        store.objects.delete(f"{waiters_path('run')}one.json")
        assert waiters.any()
        time.sleep(0.3)
        assert not waiters.any()

    def test_are_presumed_while_the_store_is_away(self, store, fast, monkeypatch):
        waiters = Waiters(store.objects, "run")
        self.word(store, "one", "1")
        assert waiters.any()

        def fail(prefix):
            raise StorageFailed("s3://b", "an outage", "an answer", "wait")

        with monkeypatch.context() as away:
            away.setattr(store.objects, "sizes", fail)
            time.sleep(0.7)
            assert waiters.any()
        assert waiters.any()


class TestOldRuns:
    def test_are_forgotten(self, store):
        for name, at in (("old", "2020-01-01T00:00:00+00:00"), ("new", datetime.now(UTC))):
            told = PoolRun(at=str(at))
            store.objects.write(run_path(name), told.model_dump_json().encode())
            store.objects.write(f"{waiters_path(name)}one.json", b"{}")
        forget_old_runs(store)
        left = store.objects.sizes("pool-runs/")
        assert set(left) == {run_path("new"), f"{waiters_path('new')}one.json"}
