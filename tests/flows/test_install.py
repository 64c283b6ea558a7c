"""The installed libraries work together: two of the pins exist because newer releases do not.

With fastapi 0.155 the server does not start; with SQLAlchemy 2.1 its scheduler creates no runs.
"""

from importlib import metadata

from packaging.version import Version
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule

from tests.waiting import wait_for


class TestPins:
    def test_fastapi_is_one_that_prefect_starts_with(self):
        assert Version(metadata.version("fastapi")) < Version("0.151")

    def test_sqlalchemy_is_one_whose_bulk_statements_the_scheduler_can_use(self):
        assert Version(metadata.version("sqlalchemy")) < Version("2.1")


class TestServer:
    def test_starts_and_answers(self, prefect_env):
        with get_client(sync_client=True) as client:
            assert client.api_healthcheck() is None

    def test_a_cron_schedule_creates_runs(self, prefect_env):
        with get_client(sync_client=True) as client:
            flow_id = client.create_flow_from_name("scheduled")
            deployment = client.create_deployment(
                flow_id,
                name="nightly",
                schedules=[
                    DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)
                ],
            )
            runs = wait_for(
                lambda: [run for run in client.read_flow_runs() if run.deployment_id == deployment],
                "a run that the scheduler created",
            )
            assert {run.state.name for run in runs} == {"Scheduled"}
            client.delete_deployment(deployment)
