"""When work smaller than a step is repeated, and when its record is used."""

import pytest

from tasks.runtime.context import RunContext
from tasks.runtime.substep_cache import SubstepCache
from tasks.storage.store import open_store


@pytest.fixture
def context(tmp_path):
    return RunContext(store=str(tmp_path / "store"))


@pytest.fixture
def put(context, tmp_path):
    """Stores an artifact; returns how a record names it."""

    def put(name):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(name)
        return open_store(context.store).put("number", folder).model_dump(mode="json")

    return put


def cache_of(context, **changes):
    options = {"code": ("tasks.plan.plan",), "libraries": ("pydantic",)} | changes
    return SubstepCache("square", "calculate", context, **options)


class TestKeys:
    def test_depend_on_inputs_code_and_libraries(self, context):
        cache = cache_of(context)
        assert cache.key({"n": 1}) == cache_of(context).key({"n": 1})
        others = [
            cache.key({"n": 2}),
            cache_of(context, code=("tasks.load.splits",)).key({"n": 1}),
            cache_of(context, libraries=("pytest",)).key({"n": 1}),
        ]
        assert cache.key({"n": 1}) not in others


class TestRecords:
    def test_are_found_by_a_later_run(self, context):
        cache_of(context).put("k", {"square": 4})
        assert cache_of(context).get("k") == {"square": 4}
        assert cache_of(context).get("another") is None

    @pytest.mark.parametrize("several", [False, True])
    def test_are_ignored_if_an_artifact_is_damaged(self, context, put, several):
        artifacts = [{"artifact": put(name)} for name in "ab"]
        record = {"shards": artifacts} if several else artifacts[1]
        cache_of(context).put("k", record)
        assert cache_of(context).get("k") == record
        open_store(context.store).discard("number", artifacts[1]["artifact"]["digest"])
        assert cache_of(context).get("k") is None

    def test_are_ignored_by_a_refresh_unless_it_wrote_them(self, context):
        cache_of(context).put("old", {"square": 4})
        refreshing = cache_of(context.model_copy(update={"refresh": ("calculate",)}))
        assert refreshing.get("old") is None
        refreshing.put("new", {"square": 9})
        assert refreshing.get("new") == {"square": 9}

    def test_are_used_by_a_repair(self, context):
        cache_of(context).put("k", {"square": 4})
        repairing = cache_of(context.model_copy(update={"repair": ("calculate",)}))
        assert repairing.get("k") == {"square": 4}
