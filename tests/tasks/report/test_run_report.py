"""The report: what an operator reads on a run's page."""

import pytest

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BadData, BadRecipe, StorageFailed
from tasks.contracts.results import Provenance, StepResult
from tasks.report import run_report
from tasks.report.loss_curve import loss_curve
from tasks.report.markdown import data_changes, markdown_table
from tasks.report.progress import TrainingProgress, progress_sentence
from tasks.report.run_report import RunReport


@pytest.fixture
def report(monkeypatch):
    monkeypatch.setattr(run_report.RunReport, "show", lambda self: None)
    return RunReport("news", "run-2", deployed=True)


def result(run_id):
    made = Provenance(
        run_id=run_id, run_name="calm-otter", at="then", seconds=2, libraries={}, code="c"
    )
    artifact = Artifact(kind="k", digest="d", files=1, bytes=1, uri="u")
    return StepResult(artifact=artifact, provenance=made)


class TestFailure:
    def test_says_cause_place_remedy_visibility_and_next_command(self, report):
        report.fail(StorageFailed("s3://b", "503", "an answer", "try again"))
        text = report.markdown()
        for part in (
            "# news: Failed",
            "**Cause:** storage",
            "**Where:** s3://b",
            "**Fix:** try again",
            "**Visible to consumers:** Nothing was published.",
            "a retry may help: press Retry on the run's page",
            "`prefect flow-run retry run-2`",
        ):
            assert part in text

    def test_says_when_a_retry_alone_will_not_help(self, report):
        report.fail(BadData("rows.csv:3", "no label", "a label", "add one"))
        assert "**Next:** once the cause is mended, retry: press Retry" in report.markdown()

    def test_a_cause_in_the_recipe_needs_a_new_run(self, report):
        report.fail(BadRecipe("lora.r", "0", "1 or more", "raise it"))
        assert "start a new run: a retry has the same recipe" in report.markdown()

    def test_a_training_that_failed_shows_its_losses_until_then(self, report):
        error = StorageFailed("disk", "full", "room", "free some")
        with pytest.raises(StorageFailed), TrainingProgress() as progress:
            progress.update({"step": 1, "loss": 2.0})
            progress.update({"step": 2, "loss": 1.5})
            raise error
        report.fail(error)
        assert "## Training\n\nUntil it failed:\n\n![loss](data:image/svg+xml" in report.markdown()

    def test_what_broke_comes_first(self, report):
        report.section("Data", "rows")
        report.fail(BadData("rows.csv:3", "no label", "a label", "add one"))
        assert report.markdown().index("## What broke") < report.markdown().index("## Data")

    def test_a_report_that_cannot_be_written_does_not_lose_the_run(self, monkeypatch):
        def broken(*arguments, **options):
            raise ConnectionError("no server")

        monkeypatch.setattr(run_report, "create_markdown_artifact", broken)
        RunReport("news", "run", deployed=False).show()


class TestSteps:
    def test_what_was_made_and_what_was_reused_is_told_apart(self, report):
        report.add_step("load", result("run-2"), "rows")
        report.add_step("finetune", result("run-1"), "weights")
        assert "| load | made in 2.0 s | rows |" in report.markdown()
        assert "| finetune | reused, from run calm-otter of then | weights |" in report.markdown()


class TestParts:
    def test_table_cells_cannot_break_the_table(self):
        assert markdown_table(("a",), [("x|y\nz",)]).endswith("| x\\|y z |")

    def test_the_loss_curve_needs_no_network(self):
        history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1}]
        assert loss_curve(history).startswith("![loss](data:image/svg+xml;base64,")

    def test_one_point_is_no_curve(self):
        assert loss_curve([{"step": 1, "loss": 2.0}]) == ""

    def test_progress_lines_without_figures_say_nothing(self):
        assert progress_sentence({"stage": "loading model"}) == ""

    def test_progress_lines_name_step_and_figures(self):
        line = {"step": 3, "steps": 9, "loss": 0.5, "tokens_per_second": 1234.5}
        assert progress_sentence(line) == "step 3 of 9: loss 0.5000, 1234 tokens/s"

    def test_changes_name_new_and_vanished_labels(self):
        before = {"rows": {"train": 10}, "labels": {"a": {}, "b": {}}}
        now = {"rows": {"train": 13}, "labels": {"b": {}, "c": {}}}
        sentence = data_changes(now, before)
        assert "+3 kept rows" in sentence
        assert "new labels: c" in sentence
        assert "vanished labels: a" in sentence
