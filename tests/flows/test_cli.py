"""The command line: what it prints, and how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.cli import main
from tasks.contracts.artifacts import Artifact
from tasks.contracts.release import Deployment, DeploymentEvent, LogEntry, Publication, Release
from tasks.contracts.verdict import Verdict
from tasks.release import deployment_log
from tasks.storage.store import open_store


def run(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
        raise SystemExit(0)
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


class TestCheck:
    def test_prints_the_recipe_with_every_default(self, capsys):
        status, out, _ = run(capsys, "check", "news", "--set", "training.epochs=7")
        recipe = yaml.safe_load(out)
        assert (status, recipe["training"]["epochs"]) == (0, 7)
        assert recipe["training"]["schedule"] == "linear"

    def test_a_bad_recipe_fails_with_every_problem(self, capsys, tmp_path):
        (tmp_path / "bad.yaml").write_text("name: X\nmodel: {uri: m}\n")
        status, _, err = run(capsys, "check", str(tmp_path / "bad.yaml"))
        assert status == 2
        assert "name: found 'X'" in err
        assert "data: field required" in err

    def test_a_file_that_is_not_yaml_is_refused(self, capsys, tmp_path):
        (tmp_path / "bad.yaml").write_text("name: [\n")
        status, _, err = run(capsys, "check", str(tmp_path / "bad.yaml"))
        assert (status, "expected a YAML file" in err) == (2, True)

    def test_an_empty_file_is_not_a_recipe(self, capsys, tmp_path):
        (tmp_path / "empty.yaml").write_text("")
        status, _, err = run(capsys, "check", str(tmp_path / "empty.yaml"), "--set", "a.b=1")
        assert (status, "expected a mapping of fields" in err) == (2, True)

    def test_a_setting_without_a_value_is_refused(self, capsys):
        status, _, err = run(capsys, "check", "news", "--set", "training.epochs")
        assert (status, "change 'training.epochs'" in err) == (2, True)

    def test_a_setting_below_a_value_is_refused(self, capsys):
        status, _, err = run(capsys, "check", "news", "--set", "name.first=x")
        assert (status, "'name' is a value" in err) == (2, True)


class TestHelp:
    @pytest.mark.parametrize("command", ["retrain", "check", "events"])
    def test_every_command_has_a_help_text(self, capsys, command):
        status, out, _ = run(capsys, command, "--help")
        assert status == 0
        assert "Usage:" in out

    def test_the_console_script_is_installed(self):
        script = Path(sys.executable).with_name("burnish")
        shown = subprocess.run([script, "retrain", "--help"], capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        assert "Exit status: 0 released or up to date" in shown.stdout

    def test_an_unknown_step_to_refresh_is_refused_before_anything_runs(self, capsys):
        status, _, err = run(capsys, "retrain", "news", "--refresh", "training")
        assert (status, "finetune" in err) == (2, True)


def deployed_event(store, digest, number):
    artifact = Artifact(kind="model", digest=digest, files=1, bytes=1, uri="x")
    release = Release(
        name="news",
        channel="production",
        version=digest[:12],
        digest=digest,
        artifact=artifact,
        provenance=artifact,
    )
    verdict = Verdict(
        outcome="promoted",
        rules=(),
        candidate_digest=digest,
        baseline="none",
        baseline_digest="",
        baseline_entry=0,
        test_digest="t",
        look_number=1,
        examples=1,
        dropped=0,
        baseline_seen="no baseline",
        summary="Promoted.",
    )
    place = Publication(target="t", uri=f"/releases/{digest}", revision=digest)
    event = DeploymentEvent(
        id=DeploymentEvent.make_id("burnish/news/production", "deployed", digest, number - 1),
        source="burnish/news/production",
        type="burnish.model.deployed",
        subject="news",
        time="2026-01-01T00:00:00+00:00",
        data=Deployment(
            model="news",
            channel="production",
            task="text-classification",
            version=digest[:12],
            digest=digest,
            publications=(place,),
            recipe_digest="r",
            metrics={"accuracy": 0.9},
            baseline_metrics={},
            verdict=verdict,
            provenance="p",
            previous=None,
        ),
    )
    deployment_log.append(
        store,
        LogEntry(number=number, kind="deployed", at="now", run="r", release=release, event=event),
    )


class TestEvents:
    @pytest.fixture
    def store(self, tmp_path):
        store = open_store(str(tmp_path / "store"))
        deployed_event(store, "a" * 64, 1)
        deployed_event(store, "b" * 64, 2)
        return store

    def test_prints_one_document_per_line_oldest_first(self, capsys, store):
        status, out, _ = run(capsys, "events", "news", "--store", store.uri)
        assert status == 0
        assert [json.loads(line)["data"]["version"] for line in out.splitlines()] == [
            "a" * 12,
            "b" * 12,
        ]

    def test_after_a_number_prints_only_later_ones(self, capsys, store):
        _, out, _ = run(capsys, "events", "news", "--store", store.uri, "--after", "1")
        assert [json.loads(line)["data"]["version"] for line in out.splitlines()] == ["b" * 12]

    def test_latest_prints_what_to_serve_and_where_it_is(self, capsys, store):
        _, out, _ = run(capsys, "events", "news", "--store", store.uri, "--latest")
        event = json.loads(out)
        assert event["specversion"] == "1.0"
        assert event["data"]["publications"][0]["uri"] == f"/releases/{'b' * 64}"

    @pytest.mark.parametrize("options", [[], ["--latest"]])
    def test_of_an_unknown_model_are_an_error_that_names_the_known_ones(
        self, capsys, store, options
    ):
        status, out, err = run(capsys, "events", "other", "--store", store.uri, *options)
        assert (status, out) == (1, "")
        assert "nothing is deployed for other on production" in err
        assert "which has news on production" in err

    def test_follow_prints_later_events(self, store):
        command = [sys.executable, "-m", "flows.cli", "events", "news", "--follow"]
        with subprocess.Popen(
            [*command, "--store", store.uri], stdout=subprocess.PIPE, text=True
        ) as reader:
            try:
                seen = [json.loads(reader.stdout.readline())["data"]["version"] for _ in range(2)]
                deployed_event(store, "c" * 64, 3)
                seen.append(json.loads(reader.stdout.readline())["data"]["version"])
            finally:
                reader.kill()
        assert seen == ["a" * 12, "b" * 12, "c" * 12]
