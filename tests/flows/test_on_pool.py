"""A run with a pool: what it asks of the workers, and what it then finds. This process plays the
worker; tests/production has a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows import on_pool
from flows.steps import LIBRARIES, machine_path, steps
from tasks.contracts.base import digest_of
from tasks.contracts.errors import PoolChanged, PoolFailed, StorageFailed, from_json
from tasks.contracts.machine import Machine
from tasks.contracts.pool import PoolRun, Request
from tasks.runtime import pool_run
from tasks.runtime.gguf_converter import find_converter
from tasks.runtime.machine import this_machine
from tasks.runtime.pool_run import run_path
from tasks.storage.store import open_store
from tests.flows.conftest import report_of, task_states
from tests.flows.language_place import questions
from tests.tasks.samples import SHIPS, run_context, write_jsonl


def ask(request: Request, store_uri: str):
    """Have this process do what a worker would; returns the state and the run's last word."""
    store, digest = open_store(store_uri), digest_of(request)
    store.objects.write(f"requests/{digest}.json", request.model_dump_json().encode())
    state = steps(digest, store_uri, "parent-id", "parent", return_state=True)
    said = store.read_json(run_path(str(state.state_details.flow_run_id)))
    return state, PoolRun.model_validate(said)


@pytest.fixture
def pool(monkeypatch):
    """This process is the worker of a pool; returns what it was asked."""
    asked = []

    def compute(request, key, is_done, context, on_child=None):
        asked.append(request)
        _, said = ask(request, context.store)
        if said.error:
            raise from_json(said.error)
        assert is_done() or request.refresh

    monkeypatch.setattr(pool_run, "NOBODY_SECONDS", 1000.0)
    monkeypatch.setattr(on_pool, "check_pool", lambda name: None)
    monkeypatch.setattr(on_pool, "compute_on_pool", compute)
    # A run that no deployment started has the pool "none".
    return asked


def names(request: Request) -> list[str]:
    return [asked.step for asked in request.steps]


class TestARun:
    def test_asks_for_what_is_not_recorded(self, place, pool):
        # Released without a pool before: the same keys, since it is the same machine.
        assert place.run(plan__pool="none").name == "Up to date"
        (probe,) = pool
        assert names(probe) == []
        pool.clear()

        changed = {"plan__pool": "none", "training__epochs": 1}
        state = place.run(**changed)
        assert state.name == "Released", state.message
        (request,) = pool
        assert names(request) == ["finetune", "evaluate", "evaluate"]
        assert task_states(state)["finetune"] == task_states(state)["evaluate"] == "Cached"
        assert "done in" in report_of(state)
        pool.clear()

        # Nothing is left to do: nobody is asked.
        assert place.run(**changed).name == "Up to date"
        assert pool == []
        # What is deployed is scored anew as the baseline of another candidate.
        other = place.run(**changed, training__seed=5)
        assert other.name in ("Released", "Rejected"), other.message
        # And the anchor: the first release.
        assert names(pool[-1]) == ["finetune", "evaluate", "evaluate", "evaluate"]

    def test_has_refreshed_steps_repeated_by_the_worker(self, place, pool):
        place.run(plan__pool="none")
        state = place.run(refresh="finetune", plan__pool="none")
        assert state.name == "Up to date", state.message
        request = pool[-1]
        assert names(request)[0] == "finetune" and "finetune" in request.refresh

    def test_has_each_refreshed_step_repeated_once(self, place, pool):
        # Nothing is deployed on this channel: the run goes on to the scores.
        changes = {"plan__pool": "none", "announce__channel": "staging"}
        place.run(**changes)
        pool.clear()
        state = place.run(refresh="finetune", **changes, gate__min_examples=21)
        assert state.name in ("Up to date", "Released"), state.message
        assert [names(request)[0] for request in pool] == ["finetune"]
        pool.clear()
        place.run(refresh="evaluate", plan__pool="none", announce__channel="another")
        assert [set(names(request)) for request in pool] == [{"evaluate"}]

    @pytest.mark.slow
    @pytest.mark.skipif(not find_converter(), reason="needs the converter")
    def test_of_a_language_model_leaves_nothing_to_do_on_a_gpu(self, chat, pool, tmp_path):
        write_jsonl(tmp_path / "guard.jsonl", [{"text": row["a"]} for row in questions(40)])
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "ships.yaml").write_text(yaml.safe_dump(SHIPS))
        write_jsonl(
            tmp_path / "own" / "ships.jsonl", [{"question": "A", "choices": ["b", "c"], "label": 0}]
        )
        state = chat.run(
            plan__pool="none",
            model__gguf="q8_0",
            training__epochs=1,
            gate__margin=0.9,
            evaluation__guard__uri=str(tmp_path / "guard.jsonl"),
            evaluation__benchmarks="[ships]",
            evaluation__benchmark_folder=str(tmp_path / "own"),
        )
        assert state.name in ("Released", "Rejected"), state.message
        request = pool[-1]
        assert names(request) == [
            *("gguf-check", "finetune", "gguf-export", "evaluate", "evaluate"),
            *("benchmarks", "benchmarks", "evaluate", "evaluate"),
        ]
        found = task_states(state)
        on_gpu = ("finetune", "gguf-export", "evaluate", "benchmarks")
        assert {found[name] for name in on_gpu} == {"Cached"}

    def test_plans_anew_for_a_worker_that_is_another_machine(self, place, pool):
        store = open_store(str(place.folder / "store"))
        old = this_machine(LIBRARIES).model_copy(update={"kind": "Z80, 1 core"})
        store.objects.write(machine_path("none"), old.model_dump_json().encode())
        state = place.run(plan__pool="none", training__epochs=1)
        assert state.name == "Released", state.message
        assert [request.machine.kind for request in pool] == ["Z80, 1 core", this_machine().kind]


class TestAWorker:
    @pytest.fixture(autouse=True)
    def waited_for(self, prefect_env, monkeypatch):
        monkeypatch.setattr(pool_run, "NOBODY_SECONDS", 1000.0)

    @pytest.fixture
    def store(self, tmp_path):
        return run_context(tmp_path).store

    def test_says_what_it_is(self, store):
        state, said = ask(Request(name="tiny"), store)
        assert state.is_completed() and said.ended == "done"
        found = open_store(store).read_json(machine_path("none"))
        assert Machine.model_validate(found) == this_machine(LIBRARIES)

    def test_that_is_another_machine_refuses_and_says_what_differs(self, store):
        here = this_machine(LIBRARIES)
        planned = here.model_copy(update={"libraries": {**here.libraries, "torch": "1.0"}})
        state, said = ask(Request(name="tiny", machine=planned), store)
        assert state.name == "Pool" and said.ended == "failed"
        error = from_json(said.error)
        assert type(error) is PoolChanged
        assert f"torch 1.0 there, {here.libraries['torch']} here" in error.found
        assert open_store(store).read_json(machine_path("none"))["kind"] == here.kind

    def test_with_other_code_refuses_and_names_the_step(self, store):
        here = this_machine(LIBRARIES)
        state, said = ask(Request(name="tiny", machine=here, code={"finetune": "0" * 64}), store)
        assert state.name == "Pool"
        error = from_json(said.error)
        assert type(error) is PoolFailed and "other code of the step finetune" in error.found

    def test_that_sees_another_store_says_so(self, store):
        state = steps("0" * 64, store, "parent-id", "parent", return_state=True)
        with pytest.raises(StorageFailed, match=r"no request.*s3://bucket/prefix, or a shared"):
            state.result()

    def test_tells_a_failure_on_its_own_page_too(self, store):
        here = this_machine(LIBRARIES)
        state, _ = ask(Request(name="tiny", machine=here, code={"finetune": "0" * 64}), store)
        report = report_of(state)
        assert "## What broke" in report and "nothing by this run" in report
        assert "prefect flow-run retry parent-id" in report
        assert Path(store).exists()
