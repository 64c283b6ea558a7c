"""Checkpoints in the store: complete or absent, the newest two, gone when they are of no use."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from tasks.contracts.errors import StorageFailed
from tasks.finetune import checkpoint_store
from tasks.finetune.checkpoint_store import (
    Checkpoint,
    CheckpointStore,
    remove_abandoned,
    remove_checkpoints,
)
from tasks.storage.store import Store, open_store
from tests.tasks.runtime.programs import wait_until
from tests.tasks.samples import run_context

KEY = "a" * 64


@pytest.fixture(params=["folder", "s3"])
def context(request, tmp_path):
    context = run_context(tmp_path).model_copy(update={"run_name": "calm-otter"})
    if request.param == "folder":
        return context
    uri = f"s3://{request.getfixturevalue('s3_env')}/store"
    return context.model_copy(update={"store": uri})


@pytest.fixture
def store(context):
    return open_store(context.store)


@pytest.fixture
def train(context, tmp_path):
    """A training that writes checkpoints at these steps of 100, each kept before the next."""

    def train(*steps, key=KEY, run=context):
        scratch = tmp_path / f"scratch-{len(list(tmp_path.iterdir()))}"
        checkpoints = CheckpointStore(key, run, scratch)
        for step in steps:
            folder = scratch / f"checkpoint-{step}"
            (folder / "best").mkdir(parents=True)
            (folder / "optimizer.pt").write_text(f"step {step}")
            (folder / "best" / "adapter").write_text("best")
            checkpoints.update(
                {"stage": "training", "step": step, "steps": 100, "checkpoint": str(folder)}
            )
            path = f"checkpoints/{key}/000000-{step:09}.json"
            store = open_store(run.store)
            wait_until(
                lambda store=store, path=path: (
                    (record := store.read_json(path))
                    and store.holds(Checkpoint.model_validate(record).artifact)
                )
            )
        return checkpoints

    return train


def paths(store):
    """All objects of checkpoints."""
    objects = store.objects
    return sorted([*objects.sizes("checkpoints/"), *objects.sizes("artifacts/checkpoint/")])


def records(store, key=KEY):
    found = {}
    for path in sorted(store.objects.sizes(f"checkpoints/{key}/")):
        record = Checkpoint.model_validate(store.read_json(path))
        found[record.step] = record
    return found


def resume(context, tmp_path):
    checkpoints = CheckpointStore(KEY, context, tmp_path)
    return checkpoints.newest(), checkpoints.warnings


class TestAnotherWorker:
    def test_goes_on_from_the_newest(self, train, context, tmp_path):
        train(10, 20).close()
        found, warnings = resume(context, tmp_path)
        assert (found.folder / "optimizer.pt").read_text() == "step 20"
        assert (found.folder / "best" / "adapter").read_text() == "best"
        assert found.origin.startswith("step 20 of 100, a checkpoint of run calm-otter, 20")
        assert warnings == []

    def test_begins_at_the_start_without_any(self, context, tmp_path):
        assert resume(context, tmp_path) == (None, [])

    def test_passes_over_a_damaged_one_with_a_warning(self, train, store, context, tmp_path):
        train(10, 20).close()
        home = f"artifacts/checkpoint/{records(store)[20].artifact.digest}/files"
        store.objects.write(f"{home}/optimizer.pt", b"step XX")
        found, (warning,) = resume(context, tmp_path)
        assert found.record.step == 10
        assert "the checkpoint of step 20 is damaged (the changed file optimizer.pt)" in warning
        assert set(records(store)) == {10}

    def test_clears_away_an_upload_that_was_cut_short(self, train, store, context, tmp_path):
        train(10, 20).close()
        digest = records(store)[20].artifact.digest
        store.objects.delete(f"artifacts/checkpoint/{digest}/manifest.json")
        found, warnings = resume(context, tmp_path)
        assert (found.record.step, warnings) == (10, [])
        assert not any(digest in path for path in paths(store))

    def test_ignores_a_record_that_cannot_be_read(self, train, store, context, tmp_path):
        train(10).close()
        store.objects.write(f"checkpoints/{KEY}/000000-000000099.json", b"{half")
        found, _ = resume(context, tmp_path)
        assert found.record.step == 10

    def test_goes_on_from_what_the_later_holder_of_the_lease_wrote(
        self, train, context, tmp_path, monkeypatch
    ):
        """One that was paused, and taken over, may still write a later step."""
        checkpoints = train()
        monkeypatch.setattr(checkpoint_store, "held_number", lambda: 2)
        newer = CheckpointStore(KEY, context, tmp_path)
        for holder, step in ((checkpoints, 30), (newer, 20)):
            folder = tmp_path / f"of-{step}"
            folder.mkdir()
            (folder / "optimizer.pt").write_text(f"step {step}")
            holder.update({"step": step, "steps": 100, "checkpoint": str(folder)})
            holder.close()
        assert resume(context, tmp_path / "x")[0].record.step == 20


class TestKept:
    def test_are_the_newest_two(self, train, store):
        train(10, 20, 30).close()
        assert set(records(store)) == {20, 30}
        digests = {record.artifact.digest for record in records(store).values()}
        left = {path.split("/")[2] for path in store.objects.sizes("artifacts/checkpoint/")}
        assert left == digests

    def test_is_the_newest_if_uploads_are_slower_than_the_training(
        self, train, store, tmp_path, monkeypatch
    ):
        put = Store.put

        def slow(self, *arguments):
            time.sleep(0.5)
            return put(self, *arguments)

        monkeypatch.setattr(Store, "put", slow)
        checkpoints = train()
        for step in (10, 20, 30, 40):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            (folder / "optimizer.pt").write_text(f"step {step}")
            checkpoints.update({"step": step, "steps": 100, "checkpoint": str(folder)})
            # As the program does with its older checkpoints.
            (folder / "optimizer.pt").unlink()
            time.sleep(0.05)
        checkpoints.close()
        assert set(records(store)) == {10, 40}

    def test_are_removed_when_the_training_is_done(self, train, store, context):
        train(10, 20).close()
        remove_checkpoints(KEY, context)
        assert paths(store) == []

    def test_are_removed_by_the_next_run_if_that_was_cut_short(self, train, store, context):
        train(10, 20).close()
        record = records(store)[20]
        store.objects.delete(f"artifacts/checkpoint/{record.artifact.digest}/manifest.json")
        remove_checkpoints(KEY, context)
        assert paths(store) == []

    def test_are_removed_if_no_record_names_them(self, train, store, context, tmp_path):
        train(10, 20).close()
        newest = f"checkpoints/{KEY}/000000-000000020.json"
        store.objects.write(newest, b"{")
        assert resume(context, tmp_path)[0].record.step == 10
        remove_abandoned(context)
        kept = records(store)[10].artifact.digest
        assert {path.split("/")[2] for path in store.objects.sizes("artifacts/checkpoint/")} == {
            kept
        }

    def test_are_removed_two_weeks_after_the_last_one(self, train, store, context):
        train(10, 20).close()
        train(30, key="b" * 64).close()
        for path in store.objects.sizes(f"checkpoints/{KEY}/"):
            record = Checkpoint.model_validate(store.read_json(path))
            old = (datetime.now(UTC) - timedelta(days=15)).isoformat(timespec="seconds")
            changed = record.model_copy(update={"at": old})
            store.objects.write(path, changed.model_dump_json().encode())
        remove_abandoned(context)
        assert records(store) == {}
        assert set(records(store, "b" * 64)) == {30}
        assert len(paths(store)) == 4


class TestEnd:
    def test_says_how_far_the_training_got(self, train):
        checkpoints = train(10)
        checkpoints.update({"stage": "training", "step": 14, "steps": 100})
        assert checkpoints.close() == (
            "The training reached step 14 of 100; the next run goes on from the checkpoint of "
            "step 10."
        )

    def test_says_that_nothing_was_kept(self, train):
        checkpoints = train()
        checkpoints.update({"stage": "training", "step": 14, "steps": 100})
        assert "no checkpoint was kept, so the next run begins at step 1" in checkpoints.close()

    def test_says_nothing_before_the_first_step(self, train):
        assert train().close() == ""

    def test_does_not_wait_for_an_upload_that_takes_longer_than_there_is_time(
        self, train, tmp_path, monkeypatch
    ):
        checkpoints = train(10)
        monkeypatch.setattr(checkpoint_store, "SECONDS_AFTER_STOP", 0.3)
        monkeypatch.setattr(Store, "put", lambda *_: time.sleep(60))
        (tmp_path / "late").mkdir()
        checkpoints.update({"stage": "stopping"})
        checkpoints.update({"step": 20, "steps": 100, "checkpoint": str(tmp_path / "late")})
        began = time.monotonic()
        assert "of step 10." in checkpoints.close()
        assert time.monotonic() - began < 30

    def test_reports_a_store_that_cannot_be_written(self, train, tmp_path, monkeypatch):
        def full(*_):
            raise StorageFailed("the store", "no disk space", "room", "free some")

        checkpoints = train(10)
        monkeypatch.setattr(Store, "put", full)
        (tmp_path / "late").mkdir()
        checkpoints.update({"step": 20, "steps": 100, "checkpoint": str(tmp_path / "late")})
        assert "of step 10." in checkpoints.close()
        assert ["a checkpoint could not be kept: the store" in w for w in checkpoints.warnings]
