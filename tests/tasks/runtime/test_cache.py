"""When a step runs again, and when its cached result is used."""

import shutil
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
from prefect import flow

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.results import StepResult
from tasks.runtime import cache
from tasks.runtime import lease as leases
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.lease import Holder, check_lease
from tasks.storage.store import open_store
from tests.tasks.runtime.programs import wait_until


class Inputs(Contract):
    cache_key_excludes = frozenset({"place"})

    number: int
    place: str = ""
    given: Artifact | None = None


class Counted(StepResult):
    double: int


CALLS = []


@step("double", result=Counted, code=("tasks.plan.plan",), libraries=("pydantic",))
def double(inputs: Inputs, context: RunContext) -> Counted:
    """Double a number."""
    CALLS.append(inputs.number)
    store = open_store(context.store)
    with store.scratch() as scratch:
        (scratch / "out").mkdir()
        (scratch / "out" / "number").write_text(str(2 * inputs.number))
        return Counted(artifact=store.put("number", scratch / "out"), double=2 * inputs.number)


TIDIED = []


@step(
    "alone",
    result=Counted,
    code=("tasks.plan.plan",),
    libraries=("pydantic",),
    exclusive=True,
    tidy=lambda key, context: TIDIED.append(key),
)
def alone(inputs: Inputs, context: RunContext) -> Counted:
    """Double a number slowly, one worker at a time."""
    CALLS.append(inputs.number)
    time.sleep(0.2)
    check_lease()
    return draw(inputs, context)


@step("draw", result=Counted, code=("tasks.plan.plan",), libraries=("pydantic",))
def draw_once(inputs: Inputs, context: RunContext) -> Counted:
    """Give another result each time, as a GPU may in its last bits."""
    CALLS.append(inputs.number)
    meanwhile(inputs, context)
    return draw(inputs, context)


def meanwhile(inputs, context):
    """What another worker does meanwhile."""


def draw(inputs, context):
    store = open_store(context.store)
    with store.scratch() as scratch:
        (scratch / "out").mkdir()
        (scratch / "out" / "number").write_text(uuid.uuid4().hex)
        return Counted(artifact=store.put("number", scratch / "out"), double=2 * inputs.number)


@pytest.fixture
def context(tmp_path):
    CALLS.clear()
    TIDIED.clear()
    return RunContext(store=str(tmp_path / "store"), run_id="1", run_name="first")


class TestHits:
    def test_equal_work_is_done_once(self, context):
        assert double.once(Inputs(number=4), context) == double.once(Inputs(number=4), context)
        assert CALLS == [4]

    def test_run_and_place_do_not_matter(self, context):
        double.once(Inputs(number=4, place="/here"), context)
        later = context.model_copy(update={"run_id": "2", "run_name": "second"})
        assert double.once(Inputs(number=4, place="/there"), later).provenance.run_name == "first"
        assert CALLS == [4]

    def test_a_moved_store_keeps_its_results(self, context, tmp_path):
        double.once(Inputs(number=4), context)
        shutil.move(context.store, tmp_path / "moved")
        double.once(Inputs(number=4), RunContext(store=str(tmp_path / "moved")))
        assert CALLS == [4]

    def test_an_input_artifact_counts_by_its_digest_alone(self):
        one = Artifact(kind="k", digest="d", files=1, bytes=1, uri="/a")
        two = one.model_copy(update={"uri": "/b", "bytes": 2})
        assert double.key(Inputs(number=1, given=one)) == double.key(Inputs(number=1, given=two))


class TestMisses:
    def test_another_input(self, context):
        double.once(Inputs(number=4), context)
        double.once(Inputs(number=5), context)
        assert CALLS == [4, 5]

    def test_another_input_artifact(self):
        one = Artifact(kind="k", digest="d", files=1, bytes=1, uri="/a")
        two = one.model_copy(update={"digest": "e"})
        assert double.key(Inputs(number=1, given=one)) != double.key(Inputs(number=1, given=two))

    def test_another_library_version(self, context, monkeypatch):
        double.once(Inputs(number=4), context)
        monkeypatch.setattr(cache, "library_versions", lambda names: dict.fromkeys(names, "9.9"))
        double.once(Inputs(number=4), context)
        assert CALLS == [4, 4]

    def test_a_refresh(self, context):
        double.once(Inputs(number=4), context)
        double.once(Inputs(number=4), context.model_copy(update={"refresh": ("double",)}))
        assert CALLS == [4, 4]

    @pytest.mark.parametrize("harm", ["no file", "short file", "no manifest", "garbled record"])
    def test_a_damaged_result(self, context, harm):
        result = double.once(Inputs(number=4), context)
        objects = open_store(context.store).objects
        home = f"artifacts/number/{result.artifact.digest}"
        if harm == "no file":
            objects.delete(f"{home}/files/number")
        elif harm == "short file":
            objects.write(f"{home}/files/number", b"")
        elif harm == "no manifest":
            objects.delete(f"{home}/manifest.json")
        else:
            objects.write(f"keys/double/{result.key}.json", b"{half")
        again = double.once(Inputs(number=4), context)
        assert CALLS == [4, 4]
        assert open_store(context.store).holds(again.artifact)

    def test_failed_work_leaves_no_record(self, context, tmp_path):
        @step("failing", result=StepResult, code=("tasks.plan.plan",), libraries=())
        def failing(inputs: Inputs, context: RunContext) -> StepResult:
            raise ValueError("half done")

        with pytest.raises(ValueError, match="half done"):
            failing.once(Inputs(number=1), context)
        assert failing.cached(Inputs(number=1), context) is None


class TestTwoWorkers:
    """That do equal work at the same time."""

    @pytest.fixture
    def other_is_faster(self, monkeypatch):
        """A second worker begins later and ends earlier. Returns its results."""
        results = []

        def other(inputs, context):
            if len(CALLS) == 1:
                results.append(draw_once.once(inputs, context))

        monkeypatch.setattr(sys.modules[__name__], "meanwhile", other)
        return results

    def test_end_with_the_result_of_the_faster_one(self, context, other_is_faster):
        slower = draw_once.once(Inputs(number=4), context)
        assert [slower] == other_is_faster
        assert draw_once.once(Inputs(number=4), context) == slower
        assert CALLS == [4, 4]

    def test_that_refresh_end_with_the_result_of_the_faster_one(self, context, other_is_faster):
        CALLS.append(0)
        before = draw_once.once(Inputs(number=4), context)
        CALLS.clear()
        again = context.model_copy(update={"refresh": ("draw",)})
        slower = draw_once.once(Inputs(number=4), again)
        assert [slower] == other_is_faster != [before]

    def test_end_with_a_result_that_is_whole(self, context, monkeypatch):
        def other(inputs, context):
            if len(CALLS) == 1:
                lost = draw_once.once(inputs, context).artifact
                open_store(context.store).discard(lost.kind, lost.digest)

        monkeypatch.setattr(sys.modules[__name__], "meanwhile", other)
        slower = draw_once.once(Inputs(number=4), context)
        assert open_store(context.store).holds(slower.artifact)
        assert draw_once.once(Inputs(number=4), context) == slower

    def test_of_an_exclusive_step_work_once(self, context):
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(lambda _: alone.once(Inputs(number=4), context), range(3)))
        assert CALLS == [4]
        assert results[0] == results[1] == results[2]

    def test_of_which_one_was_taken_over_end_with_the_result_of_the_other(
        self, context, monkeypatch
    ):
        """The first one is paused for so long that the second one does the work."""
        monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
        objects = open_store(context.store).objects
        path = f"leases/alone/{alone.key(Inputs(number=4))}.json"

        def take_over():
            wait_until(lambda: CALLS)
            held = Holder.model_validate_json(objects.read(path)[0])
            other = held.model_copy(update={"nonce": "other", "number": held.number + 1})
            objects.write(path, other.model_dump_json().encode())
            wait_until(lambda: len(CALLS) == 1)
            time.sleep(0.5)
            objects.write(
                path, other.model_copy(update={"released": True}).model_dump_json().encode()
            )

        thread = Thread(target=take_over)
        thread.start()
        result = alone.once(Inputs(number=4), context)
        thread.join()
        assert CALLS == [4, 4]
        assert alone.once(Inputs(number=4), context) == result


class TestTidying:
    def test_follows_the_record_and_is_repeated_with_each_use(self, context, prefect_env):
        @flow
        def run():
            return alone(Inputs(number=4), context)

        key = alone.key(Inputs(number=4))
        alone.once(Inputs(number=4), context)
        assert [key] == TIDIED
        run()
        assert [key, key] == TIDIED


class TestInPrefect:
    @pytest.fixture(autouse=True)
    def server(self, prefect_env):
        pass

    @staticmethod
    def states(context, number=4):
        @flow
        def once():
            state = double.task(Inputs(number=number), context, return_state=True)
            return state.name, state.result().double

        return once()

    def test_first_completed_then_cached(self, context):
        assert [self.states(context) for _ in range(3)] == [
            ("Completed", 8),
            ("Cached", 8),
            ("Cached", 8),
        ]
        assert CALLS == [4]

    def test_a_result_whose_artifact_is_gone_is_not_taken_from_prefect(self, context):
        for _ in range(3):
            self.states(context)
        key = double.key(Inputs(number=4))
        record = open_store(context.store).read_json(f"keys/double/{key}.json")
        open_store(context.store).discard("number", record["artifact"]["digest"])
        assert self.states(context) == ("Completed", 8)
        assert CALLS == [4, 4]

    def test_results_are_stored_as_json(self, context, tmp_path):
        self.states(context)
        stored = list((tmp_path / "store" / "keys").rglob("*.json"))
        assert len(stored) == 1
        assert b'"double": 8' in stored[0].read_bytes()
