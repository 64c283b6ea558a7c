"""The run report: what an operator reads on a run's page."""

from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from tasks.contracts.artifacts import Artifact
from tasks.contracts.errors import BadData, BadRecipe, BadRequest, StorageFailed
from tasks.contracts.results import Provenance, StepResult
from tasks.report import run_report
from tasks.report.progress import TrainingProgress
from tasks.report.run_report import Origin, RunReport, Section


@pytest.fixture
def report(monkeypatch):
    monkeypatch.setattr(RunReport, "show", lambda self: None)
    return RunReport("news", "run-2", deployed=True)


def result(run_id):
    provenance = Provenance(
        run_id=run_id, run_name="calm-otter", at="then", seconds=2, libraries={}, code="c"
    )
    artifact = Artifact(kind="k", digest="d", files=1, bytes=1, uri="u")
    return StepResult(artifact=artifact, provenance=provenance)


def page_of(run_id: UUID) -> str:
    """The report on a run's page."""
    return artifact_of(run_id).data


def artifact_of(run_id: UUID):
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(artifact_filter=mine)
    return found


class TestSections:
    def test_are_shown_in_their_declared_order(self, report):
        for section in reversed(Section):
            report.section(section, f"about {section}")
        text = report.markdown()
        places = [text.index(f"about {section}") for section in Section]
        assert places == sorted(places)

    def test_that_do_not_say_how_it_ended_are_folded(self, report):
        report.section(Section.GATE, "the rules")
        report.section(Section.PLAN, "the plan")
        text = report.markdown()
        assert "## Gate\n\nthe rules" in text
        assert "<details><summary>Plan</summary>\n\nthe plan\n\n</details>" in text

    def test_show_a_training_as_far_as_it_is(self, report):
        report.training("Training: step 1 of 9.", [{"step": 1, "loss": 2.0}])
        assert "# news: Running\n\nTraining: step 1 of 9." in report.markdown()
        assert "## Training" not in report.markdown()
        report.training("…", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
        assert "## Training\n\n![loss](data:image/svg+xml" in report.markdown()

    def test_are_replaced_by_a_second_one(self, report):
        report.section(Section.GATE, "first")
        report.section(Section.GATE, "second")
        assert "## Gate\n\nsecond" in report.markdown() and "first" not in report.markdown()

    def test_with_an_unknown_title_are_refused_at_the_call(self, report):
        with pytest.raises(ValueError, match="Harness"):
            report.section("Harness", "results")

    def test_every_title_reaches_the_page(self, prefect_env):
        run_id = uuid4()
        report = RunReport("news", str(run_id), deployed=False)
        report.status("Running.")
        for section in Section:
            report.section(section, f"about {section}")
        report.end("Released", "all is well")
        page = page_of(run_id)
        assert page.startswith("# news: Released")
        assert all(f"about {section}" in page for section in Section)


class TestFailure:
    def test_says_cause_place_fix_visibility_and_next_command(self, report):
        report.fail(StorageFailed("s3://b", "503", "an answer", "try again"), "Nothing at all.")
        text = report.markdown()
        for part in (
            "# news: Failed",
            "**Cause:** storage",
            "**Where:** s3://b",
            "**Fix:** try again",
            "**Visible to consumers:** Nothing at all.",
            "a retry may help: press Retry on the run's page",
            "`prefect flow-run retry run-2`",
        ):
            assert part in text

    def test_says_when_a_retry_alone_does_not_help(self, report):
        report.fail(BadData("rows.csv:3", "no label", "a label", "add one"), "")
        assert "**Next:** fix the cause, then retry: press Retry" in report.markdown()

    def test_caused_by_the_recipe_is_retried_once_that_is_correct(self, report):
        report.fail(BadRecipe("lora.r", "0", "1 or more", "raise it"), "")
        assert "correct the recipe, then retry: press Retry" in report.markdown()

    def test_caused_by_the_run_s_own_values_needs_a_new_run(self, report):
        report.fail(BadRequest("--to", "nothing", "a version", "name one"), "")
        assert "start a new run with other values" in report.markdown()

    def test_of_training_shows_the_losses_until_then(self, report):
        error = StorageFailed("disk", "full", "room", "free some")
        with pytest.raises(StorageFailed), TrainingProgress() as progress:
            progress.update({"step": 1, "loss": 2.0})
            progress.update({"step": 2, "loss": 1.5})
            raise error
        report.fail(error, "")
        expected = "## Training\n\nUntil the failure:\n\n![loss](data:image/svg+xml"
        assert expected in report.markdown()

    def test_comes_first_in_the_report(self, report):
        report.section(Section.DATA, "rows")
        report.fail(BadData("rows.csv:3", "no label", "a label", "add one"), "")
        assert report.markdown().index("## What broke") < report.markdown().index("<summary>Data")

    def test_to_write_the_report_does_not_fail_the_run(self, monkeypatch):
        def broken(*arguments, **options):
            raise ConnectionError("no server")

        monkeypatch.setattr(run_report, "brief_client", broken)
        RunReport("news", "run", deployed=False).end("Released", "all is well")


class TestSteps:
    def test_show_whether_this_run_produced_or_reused_a_result(self, report):
        report.add_step("load", result("run-2"), "rows")
        report.add_step("finetune", result("run-1"), "weights")
        assert "| load | done in 2.0 s | rows |" in report.markdown()
        assert "| finetune | reused from run calm-otter, then | weights |" in report.markdown()


class TestDescription:
    """What lists of artifacts show."""

    def described(self, *words, close=False):
        run_id = uuid4()
        report = RunReport("news", str(run_id), deployed=True)
        report.status("Training: step 20 of 58.")
        report.writing.flush(30)
        before = artifact_of(run_id).description
        if close:
            run_report.close_report(run_id, "news", "Crashed", lambda _: "- **Cause:** gone")
        else:
            report.end(*words)
        return before, artifact_of(run_id).description

    def test_says_what_the_run_does_and_how_it_ended(self, prefect_env):
        assert self.described("Released", "Version fae2adc5779d is deployed.") == (
            "news · Running. Training: step 20 of 58.",
            "news · Released. Version fae2adc5779d is deployed.",
        )

    def test_says_that_the_process_was_killed(self, prefect_env):
        assert self.described(close=True)[1] == "news · Crashed."

    def test_is_short(self, prefect_env):
        _, description = self.described("Failed", "word " * 100)
        assert len(description) == 200 and description.endswith("…")


class TestCloseReport:
    @pytest.fixture
    def written(self, prefect_env):
        """Writes a report, and returns what its page says after it was closed."""

        def written(end=None):
            run_id = uuid4()
            report = RunReport("news", str(run_id), deployed=True)
            report.status("Training.")
            if end:
                report.end(*end)
            report.writing.flush(30)
            run_report.close_report(run_id, "news", "Crashed", lambda _: "- **Cause:** gone")
            return page_of(run_id)

        return written

    def test_completes_one_that_was_still_running(self, written):
        text = written()
        assert text.startswith("# news: Crashed\n\n- **Cause:** gone\n\nBefore: Training.")

    def test_writes_one_if_the_run_had_not_begun_its_own(self, prefect_env):
        run_id = uuid4()
        run_report.close_report(run_id, "news", "Crashed", lambda origin: f"from {origin}")
        assert page_of(run_id) == "# news: Crashed\n\nfrom None\n"

    def test_is_told_where_the_release_would_be_recorded(self, prefect_env):
        run_id, origin = uuid4(), Origin("s3://b/store", "news", "production")
        report = RunReport("news", str(run_id), deployed=True, origin=origin)
        report.status("Training.")
        report.writing.flush(30)
        run_report.close_report(run_id, "news", "Crashed", lambda origin: f"from {origin.store}")
        assert "from s3://b/store" in page_of(run_id)

    def test_leaves_one_that_names_its_outcome(self, written):
        assert written(("Cancelled", "by a person")).startswith("# news: Cancelled\n\nby a person")
