"""Deployments: made from recipes, and never set back to what they were."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from flows.deployments import deploy, existing
from flows.recipe_files import shipped_recipes
from tasks.contracts.errors import BadRecipe, NotFound


@pytest.fixture
def recipe(tmp_path, prefect_env):
    """A user's recipe file, of a name that no other test deploys."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine-{uuid4().hex[:8]}\ndata: {{uri: a.csv}}\nmodel: {{uri: base}}\n")
    return file


def deployment_of(file: Path):
    with get_client(sync_client=True) as client:
        return existing(client, yaml.safe_load(file.read_text())["name"])


def schedules_of(file: Path) -> dict:
    """Each schedule's slug, with when it is due, and whether it is on."""
    return {
        each.slug: (getattr(each.schedule, "cron", None), each.active)
        for each in deployment_of(file).schedules
    }


class TestDeploy:
    def test_names_and_tags_it_after_the_recipe_and_pins_the_store(self, recipe, monkeypatch):
        monkeypatch.setenv("BURNISH_STORE", "s3://bucket/store")
        deploy(str(recipe))
        made = deployment_of(recipe)
        name = yaml.safe_load(recipe.read_text())["name"]
        assert (made.name, made.tags) == (name, ["retrain", name])
        assert made.parameters == {"recipe": str(recipe), "changes": {}, "refresh": "nothing"}
        heartbeat = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
        assert made.job_variables["env"] == {"BURNISH_STORE": "s3://bucket/store", **heartbeat}
        assert made.global_concurrency_limit.limit == 1
        # Another one in the environment of a later deploy would start a second log.
        monkeypatch.setenv("BURNISH_STORE", "elsewhere")
        deploy(str(recipe))
        assert deployment_of(recipe).job_variables == made.job_variables
        deploy(str(recipe), store="/moved")
        assert deployment_of(recipe).job_variables["env"]["BURNISH_STORE"] == "/moved"

    def test_a_new_one_has_a_nightly_schedule_that_is_off(self, recipe):
        deploy(str(recipe))
        assert schedules_of(recipe) == {"retrain": ("0 3 * * *", False)}

    def test_cron_sets_the_schedule_and_switches_it_on(self, recipe):
        deploy(str(recipe), cron="0 5 * * 1")
        assert schedules_of(recipe) == {"retrain": ("0 5 * * 1", True)}
        deploy(str(recipe), cron="0 6 * * 1", timezone="Europe/Paris")
        assert schedules_of(recipe) == {"retrain": ("0 6 * * 1", True)}

    def test_again_keeps_what_a_person_has_changed(self, recipe):
        deploy(str(recipe))
        made = deployment_of(recipe)
        with get_client(sync_client=True) as client:
            client.update_deployment_schedule(
                made.id,
                made.schedules[0].id,
                active=True,
                schedule=CronSchedule(cron="0 4 * * *", timezone="UTC"),
            )
            # The UI makes schedules without a slug.
            hourly = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=3600), active=True)
            client.create_deployment_schedules(made.id, [hourly])
            parameters = {**made.parameters, "changes": {"epochs": 2}}
            change = DeploymentUpdate(
                parameters=parameters,
                tags=[*made.tags, "team-a"],
                description="Ours.",
                paused=True,
            )
            client.update_deployment(made.id, change)
        deploy(str(recipe))
        after = deployment_of(recipe)
        assert after.id == made.id
        assert schedules_of(recipe) == {"retrain": ("0 4 * * *", True), None: (None, True)}
        assert after.parameters["changes"] == {"epochs": 2}
        assert (after.tags[-1], after.description, after.paused) == ("team-a", "Ours.", True)

    def test_a_schedule_that_is_none_is_refused(self, recipe):
        with pytest.raises(BadRecipe, match="--cron 'daily'"):
            deploy(str(recipe), cron="daily")
        with pytest.raises(BadRecipe, match="--timezone 'Mars'"):
            deploy(str(recipe), cron="0 3 * * *", timezone="Mars")

    def test_of_a_shipped_recipe_leaves_its_name_to_a_person_s_own(self, recipe, tmp_path):
        # Such as a corrected copy of `news`: the next `make server` must not take its name back.
        copy = tmp_path / "copy.yaml"
        copy.write_text(recipe.read_text())
        deploy(str(recipe))
        assert deploy(str(copy), take_over=False).recipe == str(recipe)
        assert deployment_of(recipe).parameters["recipe"] == str(recipe)
        deploy(str(copy))
        assert deployment_of(recipe).parameters["recipe"] == str(copy)

    def test_an_unknown_recipe_is_refused(self, prefect_env):
        with pytest.raises(NotFound, match="nwes"):
            deploy("nwes")


class TestPrefectYaml:
    def test_has_an_entry_for_each_shipped_recipe(self):
        entries = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
        assert [entry["name"] for entry in entries] == shipped_recipes()
        steps = [entry["build"][0]["flows.deployments.prepare"] for entry in entries]
        assert [step["recipe"] for step in steps] == shipped_recipes()

    def test_deploys_what_burnish_deploy_does_and_keeps_a_schedule_on(self, prefect_env):
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "news"]
        deploy("news")
        with get_client(sync_client=True) as client:
            ours = existing(client, "news")
            client.update_deployment_schedule(ours.id, ours.schedules[0].id, active=True)
            hourly = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=3600), active=True)
            client.create_deployment_schedules(ours.id, [hourly])
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            assert done.returncode == 0, done.stderr
            theirs = existing(client, "news")
            for schedule in theirs.schedules:  # No run is to start in the tests' own server.
                client.update_deployment_schedule(theirs.id, schedule.id, active=False)
        assert sorted(each.slug or "" for each in theirs.schedules) == ["", "retrain"]
        assert [each.active for each in theirs.schedules] == [True, True]
        left_out = {"updated", "schedules", "version", "version_id", "version_info", "pull_steps"}
        left_out |= {"status", "last_polled", "updated_by", "branch", "root", "labels"}
        assert theirs.model_dump(exclude=left_out) == ours.model_dump(exclude=left_out)
