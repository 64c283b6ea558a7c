"""Retraining from end to end: on a real Prefect server, real programs, a small real text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
import yaml
from huggingface_hub import HfApi
from prefect.client.orchestration import get_client
from prefect.states import Scheduled
from prefect.utilities.callables import parameter_schema

from flows import retrain as flow
from flows import stage_inputs
from flows.deployments import deploy, existing
from flows.retrain import retrain
from tasks.release import provenance
from tests.flows.conftest import ROWS, report_of, task_states
from tests.flows.running import write_recipe
from tests.tasks.samples import easy_rows, write_jsonl
from tests.waiting import wait_for


class TestFirstRun:
    def test_the_release_can_be_fetched_from_the_log_alone(self, first_release):
        entry = first_release.log()[-1]
        assert entry.kind == "deployed"
        (place,) = entry.event.data.publications
        manifest = json.loads(Path(place.uri, "manifest.json").read_text())
        names = {file["path"] for file in manifest["files"]}
        assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
        assert place.revision == entry.release.digest

    def test_the_card_has_metrics_and_verdict(self, first_release):
        folder = (
            first_release.folder / "releases" / "tiny" / first_release.log()[-1].release.version
        )
        card = (folder / "README.md").read_text()
        front = yaml.safe_load(card.split("---")[1])
        assert front["pipeline_tag"] == "text-classification"
        accuracy = first_release.log()[-1].event.data.metrics["accuracy"]
        assert f"{accuracy:.4f}" in card
        assert "## Verdict" in card

    def test_the_cards_code_runs_on_a_text_of_any_length(self, first_release):
        release = first_release.log()[-1].release
        folder = first_release.folder / "releases" / "tiny" / release.version
        [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        long_text = json.dumps("sports and business " * 500)
        code = code.replace("MODEL", str(folder)).replace('"A text."', long_text)
        *setup, call = code.strip().splitlines()
        scope = {}
        exec("\n".join(setup), scope)
        [answer] = eval(call, scope)
        assert answer["label"] in ("business", "sports", "tech")

    def test_no_shipped_file_names_a_path_of_this_machine(self, first_release):
        folder = (
            first_release.folder / "releases" / "tiny" / first_release.log()[-1].release.version
        )
        for file in folder.iterdir():
            if file.name != "tokenizer.json":
                content = file.read_bytes()
                for place in (first_release.base.parent, first_release.folder):
                    assert str(place).encode() not in content, file.name

    def test_provenance_holds_what_is_needed_to_reproduce_it(self, first_release):
        entry = first_release.log()[-1]
        found = provenance.provenance_of(entry.release, first_release.store)
        assert found["recipe"]["name"] == "tiny"
        assert set(found["steps"]) == {
            "load",
            "inspect",
            "tokenize",
            "finetune",
            "evaluate",
            "gate",
        }
        assert found["steps"]["finetune"]["provenance"]["libraries"]["torch"]
        assert found["sources"]["data"]["digest"]

    def test_the_event_reaches_prefect_with_the_same_id(self, first_release, prefect_env):
        event = first_release.log()[-1].event
        with get_client(sync_client=True) as client:

            def delivered():
                answer = client.request(
                    "POST", "/events/filter", json={"filter": {"event": {"name": [event.type]}}}
                ).json()["events"]
                return any(item["id"] == event.id for item in answer)

            wait_for(delivered, f"event {event.id}")


class TestNothingChanged:
    def test_ends_up_to_date_with_everything_cached_and_nothing_published(self, place):
        def files():
            # The check of access passes through the staging folder, which no consumer lists.
            found = (place.folder / "releases").rglob("*")
            return {path: path.stat().st_mtime_ns for path in found if path.name != ".staging"}

        before = files()
        state = place.run()
        assert state.name == "Up to date"
        assert task_states(state) == {
            "load": "Cached",
            "inspect": "Cached",
            "tokenize": "Cached",
            "finetune": "Cached",
        }
        assert len(place.log()) == 2
        assert files() == before

    def test_the_report_carries_the_stored_verdict(self, place):
        report = report_of(place.run())
        assert "Up to date" in report
        assert place.log()[-1].event.data.verdict.summary in report
        assert place.log()[-1].event.id in report

    def test_neither_torch_nor_scipy_is_loaded_nor_a_fork_server_started(self, place):
        recipe = place.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(place.recipe().model_dump(mode="json")))
        code = (
            "import sys\n"
            "from flows.cli import main\n"
            "import psutil\n"
            "try:\n"
            f"    main(['retrain', {str(recipe)!r}])\n"
            "except SystemExit as ended:\n"
            "    print('status', ended.code)\n"
            "print(sorted({'torch', 'transformers', 'scipy', 'sklearn'} & set(sys.modules)))\n"
            "print(psutil.Process().children())\n"
        )
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert shown.stdout.endswith("status 0\n[]\n[]\n"), shown.stdout + shown.stderr
        assert "tiny: Up to date" in shown.stdout

    def test_a_moved_and_reordered_file_is_the_same_data(self, place):
        rows = [json.loads(line) for line in place.data.read_text().splitlines()]
        moved = write_jsonl(place.folder / "elsewhere" / "other.jsonl", rows)
        assert place.run(data__uri=str(moved)).name == "Up to date"

    def test_settings_that_only_publishing_reads_do_not_train_again(self, place):
        state = place.run(publish__private=False, evaluation__batch_size=8)
        assert state.name == "Up to date"

    def test_a_target_that_was_added_gets_the_release(self, place):
        target = str(place.folder / "more")
        state = place.run(publish__targets=[target])
        assert state.name == "Up to date"
        assert (place.folder / "more" / "tiny" / "latest" / "production.json").is_file()
        assert len(place.log()) == 2


class TestNewData:
    def test_only_new_shards_are_read_and_the_deployed_release_is_the_baseline(self, place):
        write_jsonl(place.data, easy_rows(ROWS + 200))
        state = place.run()
        assert state.name == "Released", state.message
        entries = place.log()
        assert [entry.kind for entry in entries] == ["revealing", "deployed"] * 2
        first, second = entries[1], entries[3]
        assert second.event.data.previous == first.release.version
        assert second.event.data.verdict.baseline == first.release.version
        assert second.event.id != first.event.id
        report = report_of(state)
        assert "Since the deployed release: +" in report

    def test_a_rejected_candidate_has_reasons_and_changes_nothing(self, place):
        pointer = place.folder / "releases" / "tiny" / "latest" / "production.json"
        before = pointer.read_bytes()
        write_jsonl(place.data, easy_rows(ROWS + 200))
        state = place.run(gate__max_size_mb=0.001)
        assert (state.name, state.type.value) == ("Rejected", "COMPLETED")
        assert "size at most 0.001 MB" in state.message
        assert pointer.read_bytes() == before
        assert len(place.log()) == 2
        report = report_of(state)
        assert "above the budget of" in report
        again = place.run(gate__max_size_mb=0.001)
        assert set(task_states(again).values()) == {"Cached"}


class TestTargets:
    """The same work under another name: nothing is trained, everything is published."""

    def test_s3(self, place, s3, s3_env):
        state = place.run(name="second", publish__targets=[f"s3://{s3_env}/models"])
        assert state.name == "Released", state.message
        client = s3.client()
        pointer = client.get_object(Bucket=s3_env, Key="models/second/latest/production.json")
        version = orjson.loads(pointer["Body"].read())["version"]
        listed = client.list_objects_v2(Bucket=s3_env, Prefix=f"models/second/{version}/")
        assert any(item["Key"].endswith("model.safetensors") for item in listed["Contents"])

    def test_hub(self, place, hub_env):
        state = place.run(name="second", publish__targets=["hf://ci/second"])
        assert state.name == "Released", state.message
        entry = place.log("second")[-1]
        (publication,) = entry.release.publications
        assert publication.revision == HfApi().model_info("ci/second").sha
        assert "model.safetensors" in hub_env.files("ci/second", publication.revision)
        assert place.run(name="second", publish__targets=["hf://ci/second"]).name == "Up to date"

    def test_all_at_once(self, place, s3_env, hub_env):
        targets = [str(place.folder / "own"), f"s3://{s3_env}/models", "hf://ci/second"]
        assert place.run(name="second", publish__targets=targets).name == "Released"
        assert [item.target for item in place.log("second")[-1].release.publications] == targets


class TestAnOldRelease:
    def test_is_the_baseline_though_its_recipe_has_fields_of_another_name(self, place, monkeypatch):
        build = stage_inputs.release_inputs

        def build_old(*arguments):
            inputs = build(*arguments)
            recipe = inputs.recipe | {"rounds": 3, "training": {"rate": 0.1}}
            return inputs.model_copy(update={"recipe": recipe})

        with monkeypatch.context() as patch:
            patch.setattr(stage_inputs, "release_inputs", build_old)
            assert place.run(name="second").name == "Released"
        write_jsonl(place.data, easy_rows(ROWS + 200))
        state = place.run(name="second")
        assert state.name == "Released", state.message
        first, second = (entry for entry in place.log("second") if entry.kind == "deployed")
        assert second.event.data.verdict.baseline == first.release.version


class TestForm:
    def test_asks_for_a_recipe_changes_and_what_to_refresh(self):
        schema = parameter_schema(retrain).model_dump()
        assert list(schema["properties"]) == ["recipe", "changes", "refresh"]
        assert set(schema["definitions"]) == {"Changes"}
        fields = schema["definitions"]["Changes"]["properties"]
        assert (fields["epochs"]["minimum"], fields["epochs"]["maximum"]) == (0, 1000)
        assert all(field["title"] and field["description"] for field in fields.values())
        # A field with several types is shown as tabs, one of them for "None".
        assert [name for name, field in fields.items() if "anyOf" in field] == []

    def test_single_fields_come_as_plain_values(self, place):
        file = write_recipe(place.recipe(name="second"), place.folder)
        state = retrain(file, {"epochs": 3, "other": ["gate.margin=0.4"]}, return_state=True)
        assert state.name == "Released", state.message
        found = provenance.provenance_of(place.log("second")[-1].release, place.store)["recipe"]
        assert (found["training"]["epochs"], found["gate"]["margin"]) == (3, 0.4)

    def test_a_value_out_of_bounds_is_refused_by_its_field(self, place):
        file = write_recipe(place.recipe(), place.folder)
        state = retrain(file, {"max_length": 4}, return_state=True)
        assert state.name == "Bad recipe"
        assert "training.max_length: found 4" in state.message


class TestLateRun:
    def due(self, deployment, hours_ago, tags=("auto-scheduled",)):
        then = datetime.now(UTC) - timedelta(hours=hours_ago)
        with get_client(sync_client=True) as client:
            return client.create_flow_run_from_deployment(
                deployment.id, state=Scheduled(scheduled_time=then), tags=list(tags)
            )

    def test_is_superseded_by_a_later_due_run_of_its_schedule(self, place, monkeypatch):
        deploy(write_recipe(place.recipe(name="late"), place.folder))
        with get_client(sync_client=True) as client:
            deployment = existing(client, "late")
        first = self.due(deployment, hours_ago=5)
        self.due(deployment, hours_ago=1, tags=["by hand"])
        now = SimpleNamespace(
            tags=first.tags, scheduled_start_time=first.state.state_details.scheduled_time
        )
        monkeypatch.setattr(flow, "this_run", now)
        monkeypatch.setattr(flow, "deployment", deployment)
        assert flow.later_due_run() == ""
        later = self.due(deployment, hours_ago=3)
        self.due(deployment, hours_ago=-3)
        assert flow.later_due_run() == later.name
        now.tags = ["by hand"]
        assert flow.later_due_run() == ""


class TestRun:
    def test_is_named_and_tagged_for_the_lists_of_runs(self, place):
        def run_of(state):
            with get_client(sync_client=True) as client:
                return client.read_flow_run(state.state_details.flow_run_id)

        done = place.run()
        assert run_of(done).name.startswith("tiny-")
        assert run_of(done).tags == ["up-to-date"]
        assert done.message.startswith("Up to date. Version ")
        # By the recipe's own name, whatever its file is called.
        other = shutil.copy(write_recipe(place.recipe(), place.folder), place.folder / "copy.yaml")
        assert run_of(retrain(str(other), return_state=True)).name.startswith("tiny-")
        failed = place.run(data__uri="/nowhere.jsonl")
        assert run_of(failed).tags == ["not-found"]
        assert failed.message.startswith("Not found. data.uri /nowhere.jsonl")


class TestRefresh:
    def test_repeats_the_step_and_all_after_it(self, place):
        state = place.run("finetune")
        assert state.name == "Up to date"
        assert task_states(state) == {
            "load": "Cached",
            "inspect": "Cached",
            "tokenize": "Cached",
            "finetune": "Completed",
        }


class TestSecrets:
    def test_no_secret_reaches_the_store_the_release_or_the_report(
        self, place, s3, s3_env, hub_env
    ):
        targets = [f"s3://{s3_env}/models", "hf://ci/second", str(place.folder / "own")]
        state = place.run(name="second", publish__targets=targets)
        secrets = [s3.secret_key.encode(), hub_env.token.encode()]
        written = [path.read_bytes() for path in place.folder.rglob("*") if path.is_file()]
        written.append(report_of(state).encode())
        assert not [secret for secret in secrets for data in written if secret in data]


@pytest.mark.slow
class TestEverythingInS3:
    def test_data_model_store_and_target(self, empty_place, s3, s3_env):
        client = s3.client()
        client.upload_file(str(empty_place.data), s3_env, "data/rows.jsonl")
        for file in empty_place.base.iterdir():
            client.upload_file(str(file), s3_env, f"base/{file.name}")
        changes = {
            "data__uri": f"s3://{s3_env}/data",
            "model__uri": f"s3://{s3_env}/base",
            "store": f"s3://{s3_env}/store",
            "publish__targets": [f"s3://{s3_env}/releases"],
        }
        assert empty_place.run(**changes).name == "Released"
        assert empty_place.run(**changes).name == "Up to date"


@pytest.mark.slow
class TestEverythingOnTheHub:
    def test_data_model_and_target(self, empty_place, hub_env):
        hub_env.add_repo("ci/rows", {"train.jsonl": empty_place.data.read_bytes()}, kind="dataset")
        hub_env.add_repo("ci/base", {f.name: f.read_bytes() for f in empty_place.base.iterdir()})
        changes = {
            "data__uri": "hf://ci/rows",
            "model__uri": "hf://ci/base",
            "publish__targets": ["hf://ci/tiny"],
        }
        assert empty_place.run(**changes).name == "Released"
        assert empty_place.run(**changes).name == "Up to date"
