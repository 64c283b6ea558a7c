"""A run has a pool's workers do its steps: whom it starts, joins, and gives up on."""

from __future__ import annotations

import contextvars
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Crashed, Failed, Running

from infra.gpu_workers import register
from tasks.contracts.errors import (
    BadModel,
    CodeFailed,
    DamagedArtifact,
    PoolFailed,
    PoolRunCancelled,
)
from tasks.contracts.pool import PoolRun, Request, StepRequest
from tasks.runtime import pool as pool_module
from tasks.runtime.pool import check_pool, compute_on_pool
from tasks.runtime.pool_run import run_path, waiters_path
from tasks.runtime.termination import ask_to_stop
from tasks.storage.store import open_store
from tests.tasks.samples import run_context
from tests.waiting import wait_for

BROKEN = BadModel("model.uri", "a broken file", "a model", "use another one")
LOST = DamagedArtifact("shard", "d" * 64, "no manifest")


class Pool:
    """A pool, and a thread that plays its worker: each run ends as the next ending says."""

    def __init__(self, folder):
        self.name = f"pool-{uuid.uuid4().hex[:8]}"
        self.context = run_context(
            folder, run_id=str(uuid.uuid4()), run_name="parent", pool=self.name
        )
        self.store = open_store(self.context.store)
        self.recorded = False
        self.endings = []
        self.waiters_seen = 0
        self._taken = set()
        self._stopped = threading.Event()
        register(self.name)
        # In this context, where the Prefect client knows its server.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._work,), daemon=True
        )
        self._thread.start()

    def runs(self):
        """The runs of the pool, the oldest first."""
        mine = FlowRunFilter(tags=FlowRunFilterTags(all_=[self.name]))
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(
                flow_run_filter=mine, sort=FlowRunSort.EXPECTED_START_TIME_ASC
            )

    def compute(self, key="key", **changes):
        """What a parent does; the recipe has the pool's name, by which its runs are found."""
        step = StepRequest(step="finetune", inputs={})
        request = Request(name=self.name, steps=(step,), **changes)
        compute_on_pool(request, key, lambda: self.recorded, self.context)

    def stop(self):
        self._stopped.set()
        self._thread.join()

    def _work(self):
        while not self._stopped.wait(0.1):
            for run in self.runs():
                if run.id not in self._taken and self.endings:
                    self._taken.add(run.id)
                    self._play(run, *self.endings.pop(0))

    def _play(self, run, state, said):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Running(), force=True)
            found = self.store.objects.sizes(waiters_path(str(run.id)))
            self.waiters_seen = max(self.waiters_seen, len(found))
            if said:
                data = said.model_dump_json().encode()
                self.store.objects.write(run_path(str(run.id)), data)
            if state:
                self.recorded = self.recorded or state.is_completed()
                client.set_flow_run_state(run.id, state, force=True)


@pytest.fixture
def pool(prefect_env, tmp_path):
    played = Pool(tmp_path)
    yield played
    played.stop()


DONE = (Completed(), PoolRun(ended="done"))
CRASHED = (Crashed(message="the process is gone"), None)


def failed(error, **facts):
    return Failed(message=str(error)), PoolRun(ended="failed", error=error.to_json(), **facts)


class TestARun:
    def test_is_started_and_waited_for(self, pool):
        pool.endings = [DONE]
        pool.compute()
        (run,) = pool.runs()
        assert run.name == f"parent-on-{pool.name}" and pool.waiters_seen == 1
        assert run.parameters["run_id"] == pool.context.run_id
        # Nobody waits any more.
        assert pool.store.objects.sizes(waiters_path(str(run.id))) == {}

    def test_is_shared_by_those_who_want_the_same(self, pool):
        with ThreadPoolExecutor(2) as parents:
            waiting = [
                parents.submit(contextvars.copy_context().run, pool.compute) for _ in range(2)
            ]
            wait_for(
                lambda: [run for run in pool.runs() if self.waiters(pool, run) == 2], "two waiters"
            )
            pool.endings = [DONE]
            for parent in waiting:
                parent.result()
        assert len(pool.runs()) == 1

    def waiters(self, pool, run):
        return len(pool.store.objects.sizes(waiters_path(str(run.id))))

    def test_is_not_shared_with_another_key(self, pool):
        pool.endings = [DONE, DONE]
        pool.compute("one")
        pool.compute("two")
        assert len(pool.runs()) == 2

    def test_that_completed_is_not_repeated_while_its_record_is_there(self, pool):
        pool.endings = [DONE, DONE]
        pool.compute()
        pool.compute()
        assert len(pool.runs()) == 1
        pool.recorded = False  # Its artifact was lost.
        pool.compute()
        assert len(pool.runs()) == 2

    def test_of_a_refreshed_step_is_repeated_once_for_each_parent(self, pool):
        pool.recorded = True
        pool.endings = [DONE, DONE]
        pool.compute(refresh=("finetune",))
        pool.compute(refresh=("finetune",))  # A retry of the same parent.
        assert len(pool.runs()) == 1
        pool.context = pool.context.model_copy(update={"run_id": "another"})
        pool.compute(refresh=("finetune",))
        assert len(pool.runs()) == 2


class TestARunThatEndsOtherwise:
    @pytest.mark.parametrize("error", [BROKEN, LOST])
    def test_with_a_known_cause_fails_its_parents_with_it(self, pool, error):
        history = ({"step": 1, "loss": 2.0},)
        pool.endings = [failed(error, kept="step 4 was kept", history=history)]
        with pytest.raises(type(error)) as caught:
            pool.compute()
        assert str(caught.value) == str(error) and caught.value.kept == "step 4 was kept"
        assert caught.value.history == list(history)
        assert getattr(caught.value, "kind", "shard") == "shard"

    def test_with_an_unknown_cause_says_what_prefect_knows(self, pool):
        pool.endings = [(Failed(message="KeyError: 'x'"), None)]
        with pytest.raises(CodeFailed, match="KeyError: 'x'"):
            pool.compute()

    def test_because_its_process_died_is_followed_by_another(self, pool):
        pool.endings = [CRASHED, CRASHED, DONE]
        pool.compute()
        assert [run.name for run in pool.runs()][1:] == [
            f"parent-on-{pool.name}-2",
            f"parent-on-{pool.name}-3",
        ]

    def test_time_and_again_is_given_up(self, pool):
        pool.endings = [CRASHED, CRASHED, CRASHED]
        with pytest.raises(PoolFailed, match=r"3 runs that crashed.*the process is gone"):
            pool.compute()
        # Whoever starts the run again gets a new one.
        pool.endings = [DONE]
        pool.compute()
        assert len(pool.runs()) == 4

    @pytest.mark.parametrize("ended", ["unwanted", "stopped"])
    def test_after_its_checkpoint_is_followed_by_another(self, pool, ended):
        pool.endings = [(Cancelled(), PoolRun(ended=ended)), DONE]
        pool.compute()
        assert len(pool.runs()) == 2

    def test_by_a_person_is_not_followed_by_another(self, pool):
        pool.endings = [(Cancelled(), PoolRun(ended="cancelled", kept="step 4 was kept"))]
        with pytest.raises(PoolRunCancelled) as caught:
            pool.compute()
        assert caught.value.kept == "step 4 was kept" and len(pool.runs()) == 1
        pool.endings = [DONE]
        pool.compute()
        assert len(pool.runs()) == 2

    def test_without_a_word_is_taken_for_dead(self, pool, monkeypatch):
        monkeypatch.setattr(pool_module, "SILENT_SECONDS", 2.0)
        pool.endings = [(None, PoolRun(beats=1, doing="Step 1 of 1.")), DONE]
        pool.compute()
        first, second = pool.runs()
        assert first.state.is_crashed() and "Not heard of" in first.state.message
        assert second.state.is_completed()


class TestAParent:
    def test_that_is_stopped_says_that_it_does_not_wait(self, pool):
        def stop():
            wait_for(pool.runs, "the run")
            time.sleep(1)
            ask_to_stop()

        threading.Thread(target=contextvars.copy_context().run, args=(stop,)).start()
        with pytest.raises(TerminationSignal) as caught:
            pool.compute()
        assert "keeps a checkpoint" in caught.value.kept
        (run,) = pool.runs()
        assert pool.store.objects.sizes(waiters_path(str(run.id))) == {}

    def test_without_a_deployment_is_refused_with_the_command(self, prefect_env):
        with pytest.raises(PoolFailed, match=r"no deployment steps/nowhere.*infra\.gpu_workers"):
            check_pool("nowhere")
