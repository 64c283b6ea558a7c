"""`make server` starts a server, workers and the deployments, and people and their data use them:
by form, by schedule, by event, in a browser."""

from __future__ import annotations

import contextlib
import contextvars
import re
import shutil
import subprocess
import sys
import threading
import time
from glob import glob
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.prefect_server import running_server
from tests.flows.conftest import Place, report_of, reports_of, training_programs
from tests.flows.running import write_recipe
from tests.production import served as served_
from tests.production.relay import Relay
from tests.production.served import LIMIT_SECONDS, Served, all_runs_of, runs_of, state_of
from tests.tasks.samples import easy_rows, write_jsonl
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]
AWAY_SECONDS = 60
PAGE_SECONDS = 120
"""How long a page may take on a busy machine."""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`python -m infra.serve` on a free port."""
    server = served_.start(tmp_path_factory.mktemp("served"))
    try:
        with temporary_settings({PREFECT_API_URL: server.api}):
            server.wait_for(served_.workers_are_ready, "workers that are ready")
            yield server
    finally:
        served_.stop(server)


@pytest.fixture(scope="module")
def scheduled(served, tmp_path_factory, tiny_base):
    """A deployment that is due every minute, since the first test."""
    place = place_in(tmp_path_factory.mktemp("scheduled"), tiny_base)
    return served.deploy(place, "--cron", "* * * * *", name="scheduled")


@pytest.fixture(scope="module")
def cut_off(served, tmp_path_factory, tiny_base):
    """A run whose server cannot be reached for a minute while it trains, beside the other tests.
    Returns how to wait for its exit status, and its place."""
    place = place_in(tmp_path_factory.mktemp("cut-off"), tiny_base)
    relay = Relay(served.port)
    recipe = write_recipe(place.recipe(name="cut-off", training__epochs=200), place.folder)
    process = subprocess.Popen(
        # The other tests need the processors more.
        ["nice", "-n", "19", sys.executable, "-m", "flows.cli", "retrain", recipe],
        env={**served.environment, "PREFECT_API_URL": f"http://127.0.0.1:{relay.port}/api"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def disturb() -> None:
        served.wait_for(lambda: training_programs(process.pid), "training")
        relay.cut()
        time.sleep(AWAY_SECONDS)
        relay.mend()

    disturbing = threading.Thread(target=contextvars.copy_context().run, args=(disturb,))
    disturbing.start()

    def ended() -> tuple[int, Place]:
        disturbing.join()
        return process.wait(LIMIT_SECONDS), place

    return ended


def place_in(folder: Any, base: Any) -> Place:
    """A place with data, in a folder."""
    place = Place(folder, base)
    write_jsonl(place.data, easy_rows(600))
    return place


def start_run(served: Served, place: Place, **changes: Any) -> Any:
    """Deploy a recipe, and start a run of it; returns its id."""
    write_jsonl(place.data, easy_rows(600))
    deployment = served.deploy(place, **changes)
    with get_client(sync_client=True) as client:
        return client.create_flow_run_from_deployment(deployment.id).id


class TestServer:
    def test_creates_the_deployments_with_their_schedules_off(self, served, scheduled, cut_off):
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("retrain/news")
        assert [schedule.active for schedule in deployment.schedules] == [False]
        assert deployment.parameters["recipe"] == "news"
        assert set(deployment.parameter_openapi_schema["definitions"]) == {"Changes"}
        assert deployment.tags == ["retrain", "news"]
        # Commands on this machine find it.
        assert running_server(served.home / "prefect") == PREFECT_API_URL.value()

    def test_a_run_of_the_deployment_releases_a_model_and_has_a_report(
        self, served, tmp_path, tiny_base
    ):
        place = Place(tmp_path, tiny_base)
        run_id = start_run(served, place)
        state = served.ended(run_id)
        assert state.name == "Released", state
        assert "## Gate" in report_of(state)
        assert place.log()[-1].kind == "deployed"
        # The lists of the V1 UI hide runs with custom state names.
        assert f"/v2/runs/flow-run/{run_id}" in served.output.read_text()

    def test_the_report_of_a_killed_run_says_that_it_crashed(self, served, tmp_path, tiny_base):
        run_id = start_run(served, Place(tmp_path, tiny_base), name="doomed", training__epochs=1000)
        trainer = trainer_of(served, run_id)
        flow_run_of(trainer).kill()
        served.wait_for(lambda: state_of(run_id).is_crashed(), "the crash, seen by the worker")
        report = served.wait_for(
            lambda: "doomed: Crashed" in (text := report_of(state_of(run_id))) and text,
            "the report of the crash",
        )
        assert "Nothing was published by this run. Deployed: nothing yet." in report
        assert f"`prefect flow-run retry {run_id}`" in report
        served.wait_for(lambda: not trainer.is_running(), "the end of the training program")

    def test_data_that_an_event_announces_start_one_retraining(self, served, tmp_path, tiny_base):
        place = place_in(tmp_path, tiny_base)
        settings = {"watch__every_minutes": 60, "watch__quiet_minutes": 0.05}
        deployment = served.deploy(place, name="watched", **settings)
        served.burnish("data-changed", "watched")
        (run,) = served.wait_for(lambda: runs_of(deployment), "a retraining")
        assert served.ended(run.id).name == "Released"
        served.burnish("data-changed", "watched")

        def nothing_new() -> bool:
            with get_client(sync_client=True) as client:
                watch = client.read_deployment_by_name("watch/watched")
            return any(run.state.name == "Nothing new" for run in runs_of(watch))

        served.wait_for(nothing_new, "a look that finds nothing new")
        assert len(runs_of(deployment)) == 1

    def test_a_schedule_starts_runs(self, served, scheduled):
        run = served.wait_for(lambda: runs_of(scheduled), "a run of the schedule")[-1]
        assert served.ended(run.id).name in ("Released", "Up to date")
        assert run.name.startswith("scheduled-") and "auto-scheduled" in run.tags
        with get_client(sync_client=True) as client:
            client.delete_deployment(scheduled.id)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
class TestBrowser:
    @pytest.fixture
    def page(self):
        from playwright.sync_api import sync_playwright

        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1300, "height": 1000})
            page.set_default_timeout(1000 * PAGE_SECONDS)
            yield page
            browser.close()

    def submit(self, served, page, deployment, **fields: str) -> str:
        """Fill in the form of a deployment, and press Submit; returns the run's id."""
        form = f"{served.pages}/deployments/deployment/{deployment.id}/run"
        answers: list[str] = []
        page.on("response", lambda response: answers.append(f"{response.status} {response.url}"))
        page.on("console", lambda message: answers.append(message.text))

        def submitted() -> list:
            # Where the page is slow, a press before it is ready does nothing: press again.
            page.goto(form)
            for label, value in fields.items():
                page.get_by_label(f"{label.replace('_', ' ')} (Optional)").fill(value)
            page.get_by_role("button", name="Submit").click()
            # The page goes on to the deployment. Its own link to the run is there for seconds only.
            with contextlib.suppress(AssertionError):
                return wait_for(lambda: all_runs_of(deployment), "the run", PAGE_SECONDS / 4)
            return []

        try:
            return str(wait_for(submitted, "the run", 2 * PAGE_SECONDS)[0].id)
        except AssertionError as error:
            shown = page.locator("body").inner_text()
            raise AssertionError(f"{error}\n{shown}\n" + "\n".join(answers[-40:])) from error

    def choose(self, page, item: str, confirm: str) -> None:
        """Choose from a run's menu, and confirm."""
        page.get_by_role("button", name="Open menu").click()
        page.get_by_role("menuitem", name=item).click()
        page.get_by_role("button", name=confirm, exact=True).last.click()

    def test_a_form_is_filled_in_and_the_run_watched_read_and_found(
        self, served, page, tmp_path, tiny_base
    ):
        place = place_in(tmp_path, tiny_base)
        deployment = served.deploy(place, name="by-form")
        run_id = self.submit(served, page, deployment, Epochs="25", Learning_rate="0.02")
        page.goto(f"{served.pages}/runs/flow-run/{run_id}?tab=Artifacts")

        def trains() -> bool:
            assert not state_of(run_id).is_final(), "it ended before its page said that it trains"
            page.reload()
            page.get_by_role("tab", name="Artifacts").wait_for()
            page.wait_for_timeout(1000)
            return page.get_by_text(re.compile("Training: step")).count() > 0

        served.wait_for(trains, "the training's progress on the page")
        state = served.ended(run_id)
        assert state.name == "Released", state
        page.reload()
        page.get_by_text(re.compile("by-form · Released")).first.wait_for()
        page.get_by_role("link", name="report-by-form").first.click()
        page.get_by_role("heading", name="by-form: Released").wait_for()
        changed = "training.epochs=25, training.learning_rate=0.02"
        page.get_by_text(changed).first.wait_for()
        assert page.get_by_role("img", name="loss").is_visible()
        page.goto(f"{served.pages}/deployments/deployment/{deployment.id}?tab=Runs")
        row = page.get_by_role("listitem").filter(has_text=name_of(run_id)).first
        row.get_by_text("Released", exact=True).wait_for()

    def test_a_run_that_is_cancelled_goes_on_from_its_checkpoint_when_it_is_retried(
        self, served, page, tmp_path, tiny_base
    ):
        place = place_in(tmp_path, tiny_base)
        deployment = served.deploy(place, name="by-click", training__checkpoint_minutes=0.01)
        run_id = self.submit(served, page, deployment, Epochs="30")
        trainer = trainer_of(served, run_id)
        processes = [each for each in trainer.parents() if "worker" not in each.cmdline()]
        processes = processes[: processes.index(psutil.Process(served.process.pid))]
        kept = f"{place.folder}/store/checkpoints/*/*.json"
        served.wait_for(lambda: glob(kept), "a checkpoint")
        page.goto(f"{served.pages}/runs/flow-run/{run_id}")
        self.choose(page, "Cancel", "Cancel Flow Run")
        served.wait_for(lambda: state_of(run_id).name == "Cancelled", "the cancellation")
        served.wait_for(lambda: not trainer.is_running(), "the end of the training program")
        report = report_of(state_of(run_id))
        assert report.startswith("# by-click: Cancelled")
        assert "**Cause:** cancelled" in report
        said = r"reached step (\d+) of \d+; the next run goes on from the checkpoint of step \1\."
        step = re.search(said, report)[1]

        # The worker confirms the cancellation after the run has said so itself, and would cancel a
        # retry that is quicker; so would the process that waits for the run's.
        served.wait_for(lambda: "successfully" in (state_of(run_id).message or ""), "the worker")
        served.wait_for(lambda: not any(each.is_running() for each in processes), "their end")
        page.reload()
        self.choose(page, "Retry", "Retry")
        served.wait_for(lambda: not state_of(run_id).is_final(), "the retry")
        assert served.ended(run_id).name == "Released", state_of(run_id)
        assert any(f"it went on from step {step} of " in text for text in reports_of(run_id))

    def test_a_release_that_waits_is_approved_in_the_form(self, served, page, tmp_path, tiny_base):
        place = place_in(tmp_path, tiny_base)
        run_id = start_run(served, place, name="asked", gate__approval="person")
        served.wait_for(lambda: state_of(run_id).is_paused(), "the question")
        page.goto(f"{served.pages}/runs/flow-run/{run_id}")
        page.get_by_role("button", name="Open menu").click()
        page.get_by_role("menuitem", name="Resume").click()
        page.get_by_text(re.compile("passed the gate and waits for a person")).first.wait_for()
        page.get_by_text("Select", exact=True).click()
        page.get_by_role("option", name="approve").click()
        page.get_by_label("Your name").fill("Ada")
        page.get_by_label("Reason").fill("read ten answers")
        page.get_by_role("button", name="Resume", exact=True).last.click()
        served.wait_for(lambda: not state_of(run_id).is_paused(), "the resumption")
        assert served.ended(run_id).name == "Released", state_of(run_id)
        assert place.log("asked")[-1].by == "Ada"


class TestAbsentServer:
    def test_lets_a_run_train_on_for_a_minute(self, cut_off):
        status, place = cut_off()
        assert status == 0
        assert [entry.kind for entry in place.log("cut-off")] == ["revealing", "deployed"]


class TestEnd:
    def test_stops_everything_that_it_started(self, served):
        started = psutil.Process(served.process.pid).children(recursive=True)
        assert len(started) >= 2
        assert served_.stop(served) == 0
        _, left = psutil.wait_procs(started, timeout=LIMIT_SECONDS)
        assert left == []


def trainer_of(served: Served, run_id: Any) -> psutil.Process:
    """The training program of a run, once it has started."""

    def training() -> list[psutil.Process]:
        state = state_of(run_id)
        assert not state.is_final(), f"the run ended before it trained: {state}"
        programs = training_programs(served.process.pid)
        return [each for each in programs if run_of(each) == str(run_id)]

    (trainer,) = served.wait_for(training, "training")
    return trainer


def flow_run_of(program: psutil.Process) -> psutil.Process:
    """The process of the flow run that started a program: its nearest parent that is Prefect."""
    return next(
        parent
        for parent in program.parents()
        if any(part.startswith("prefect") for part in parent.cmdline())
    )


def name_of(run_id: Any) -> str:
    """The name of a run."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).name


def run_of(program: psutil.Process) -> str:
    """The id of the flow run that started a program; empty if it has ended."""
    with contextlib.suppress(psutil.Error, StopIteration):
        return flow_run_of(program).environ().get("PREFECT__FLOW_RUN_ID", "")
    return ""
