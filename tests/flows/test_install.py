"""The installed libraries work together: the Prefect server starts, and its scheduler works."""

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule

from tests.waiting import wait_for


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
