"""Runs that are interrupted, meet damaged artifacts, or have bad input."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub import HfApi

from flows import release as flow
from flows.cli import main
from flows.retrain import retrain
from tasks.contracts.recipe_changes import Changes
from tasks.release import publish as publish_
from tests.flows.conftest import ROWS, report_of, task_states
from tests.flows.running import write_recipe
from tests.tasks.samples import easy_rows, write_jsonl


class TestInterrupted:
    def test_publishing_is_finished_by_the_next_run(self, place, hub_env):
        targets = [str(place.folder / "own"), "hf://ci/second"]
        hub_env.fail_next("POST", r"/tag/", status=500)
        state = place.run(name="second", publish__targets=targets)
        assert state.name == "Hub"
        assert [entry.kind for entry in place.log("second")] == ["revealing"]
        report = report_of(state)
        assert "**Cause:** Hub" in report
        assert "but it is not announced" in report

        state = place.run(name="second", publish__targets=targets)
        assert state.name == "Up to date", state.message
        assert "which run" in report_of(state)
        assert [entry.kind for entry in place.log("second")] == ["revealing", "deployed"]
        assert len(HfApi().list_repo_commits("ci/second")) == 2

    def test_publishing_is_finished_even_by_a_run_whose_candidate_is_rejected(self, place, hub_env):
        hub_env.fail_next("POST", r"/tag/", status=500)
        assert place.run(name="second", publish__targets=["hf://ci/second"]).name == "Hub"
        changes = {"training__seed": 9, "gate__floors": {"accuracy": 0.999}}
        state = place.run(name="second", publish__targets=["hf://ci/second"], **changes)
        assert state.name == "Rejected"
        deployed = place.log("second")[-1]
        assert deployed.kind == "deployed"
        assert deployed.event.data.digest == place.log()[-1].release.digest
        assert deployed.event.data.metrics == place.log()[-1].event.data.metrics

    def test_publishing_that_cannot_be_finished_is_replaced(self, place, hub_env):
        hub_env.fail_next("POST", r"/tag/", status=500)
        assert place.run(name="second", publish__targets=["hf://ci/second"]).name == "Hub"
        hub_env.fail_next("GET", r"/ci/second/refs", status=500, times=5)
        state = place.run(name="second", training__epochs=3)
        assert state.name == "Released", state.message
        kinds = [entry.kind for entry in place.log("second")]
        assert kinds == ["revealing", "revealing", "deployed"]

    def test_an_event_that_was_not_delivered_is_delivered_by_the_next_run(self, place):
        shutil.rmtree(place.folder / "store" / "deliveries")
        assert "which an earlier run owed" in report_of(place.run())
        assert "which an earlier run owed" not in report_of(place.run())

    def test_a_release_revealed_meanwhile_makes_the_gate_run_again(self, place, monkeypatch):
        publish, raced = publish_.publish, []

        def race(inputs, context):
            if not raced:
                raced.append(True)
                with monkeypatch.context() as patch:
                    patch.setattr(flow, "publish", publish)
                    assert place.run(training__epochs=3).name == "Released"
            return publish(inputs, context)

        monkeypatch.setattr(flow, "publish", race)
        write_jsonl(place.data, easy_rows(ROWS + 200))
        state = place.run()
        assert state.name == "Released", state.message
        entries = [entry for entry in place.log() if entry.kind == "deployed"]
        assert len(entries) == 3
        assert entries[2].event.data.verdict.baseline == entries[1].release.version


class TestDamage:
    def test_of_a_model_file_is_noticed_and_the_model_trained_again(self, place):
        digest = place.log()[-1].release.digest
        file = place.folder / "store/artifacts/model" / digest / "files/model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        state = place.run(name="second")
        assert state.name == "Released", state.message
        assert place.log("second")[-1].release.digest == digest

    def test_of_a_missing_shard_is_repaired_when_it_is_needed(self, place):
        shutil.rmtree(place.folder / "store/artifacts/shard")
        shutil.rmtree(place.folder / "store/keys/evaluate")
        state = place.run(name="second")
        assert state.name == "Released", state.message

    def test_of_a_lost_baseline_is_repaired_from_where_it_was_published(self, place):
        shutil.rmtree(place.folder / "store/artifacts/model")
        write_jsonl(place.data, easy_rows(ROWS + 200))
        state = place.run()
        assert state.name == "Released", state.message
        first, second = (entry for entry in place.log() if entry.kind == "deployed")
        assert second.event.data.verdict.baseline_digest == first.release.digest

    def test_of_the_deployed_release_s_provenance_is_a_warning(self, place):
        provenance = place.log()[-1].release.provenance.digest
        files = place.folder / "store/artifacts/provenance" / provenance / "files"
        for name in ("provenance.json", "seen.npy"):
            (files / name).write_bytes(b"")
        write_jsonl(place.data, easy_rows(ROWS + 200))
        state = place.run()
        assert state.name == "Released", state.message
        report = report_of(state)
        assert "is damaged: changes since its data and its training examples are unknown" in report
        assert "`burnish repair tiny --channel production`" in report
        assert place.log()[-1].event.data.verdict.baseline_seen == "unknown"

    def test_of_a_log_entry_is_named_and_burnish_repair_mends_it(self, place, capsys):
        entry = place.folder / "store/logs/tiny/production/00000002.json"
        whole = place.log()[-1].event.id
        entry.write_bytes(b"")
        state = place.run()
        assert state.name == "Storage"
        assert "run `burnish repair tiny --channel production`" in state.message
        assert "Unknown, since the log cannot be read" in report_of(state)
        with pytest.raises(SystemExit) as ended:
            main(["repair", "tiny", "--store", str(place.folder / "store")])
        assert ended.value.code == 0
        assert "ok  Entry 2 is mended" in capsys.readouterr().out
        assert place.log()[-1].event.id == whole
        assert place.run().name == "Up to date"

    def test_of_a_lost_model_is_repaired_to_the_byte(self, place):
        shutil.rmtree(place.folder / "store/artifacts/model")
        state = place.run()
        assert state.name == "Up to date"
        assert task_states(state)["finetune"] == "Completed"


BAD = {
    "empty data": (lambda place: place.data.write_text(""), {}, "Bad data", "an empty file"),
    "one class": (
        lambda place: write_jsonl(place.data, [{"text": f"t{n}", "label": "a"} for n in range(99)]),
        {},
        "Bad data",
        "label",
    ),
    "missing column": (None, {"data__text": "texts"}, "Bad data", "'texts'"),
    "no such data": (None, {"data__uri": "/nowhere.jsonl"}, "Not found", "/nowhere.jsonl"),
    "no such model": (None, {"model__uri": "/nowhere"}, "Not found", "/nowhere"),
    "no target": (
        None,
        {"lora__target_modules": ["querry"]},
        "Bad recipe",
        "did you mean 'query'",
    ),
    "too long": (None, {"training__max_length": 4096}, "Bad recipe", "the model's own limit"),
    "no credentials": (None, {"publish__targets": ["hf://ci/x"]}, "No access", "hf://ci/x"),
}


class TestBadInput:
    @pytest.mark.parametrize(("break_data", "changes", "name", "message"), BAD.values(), ids=BAD)
    def test_ends_under_its_cause_before_training_and_publishes_nothing(
        self, empty_place, hub_env, monkeypatch, break_data, changes, name, message
    ):
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        if break_data:
            break_data(empty_place)
        state = empty_place.run(**changes)
        assert (state.name, state.type.value) == (name, "FAILED")
        assert message in state.message
        report = report_of(state)
        assert "## What broke" in report
        assert "Nothing was published by this run." in report
        assert not (empty_place.folder / "releases" / "tiny").exists()
        assert not (empty_place.folder / "store/keys/finetune").exists()

    def test_the_store_is_intact_afterwards(self, empty_place):
        good = empty_place.data.read_text()
        empty_place.data.write_text(good + "{half a row\n")
        assert empty_place.run().name == "Bad data"
        empty_place.data.write_text(good)
        assert empty_place.run().name == "Released"

    def test_a_wrong_field_in_the_form_fails_before_anything_runs(self, place):
        file = write_recipe(place.recipe(), place.folder)
        changes = Changes(other=("training.epoch=3",))
        state = retrain(file, changes, return_state=True)
        assert state.name == "Bad recipe"
        assert "training.epoch: unknown field; did you mean 'epochs'?" in state.message
        report = report_of(state)
        assert report.startswith("# tiny: Failed")
        assert "Nothing was published by this run: it ended before its first step." in report
