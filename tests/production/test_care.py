"""`make server` with a password: approval, rollback, a lost machine and alarms, and no secret in
anything that is kept."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import httpx
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Scheduled
from standardwebhooks import Webhook

from flows import tend
from tasks.release.approval import proposals
from tasks.runtime.context import RunContext
from tasks.runtime.prefect_api import brief_client
from tasks.tend import lost_runs
from tests.doubles.receiver import Receiver
from tests.faults.fault_cases import CASES
from tests.faults.fault_table import try_case
from tests.flows.conftest import Place, report_of, reports_of, training_programs
from tests.production import served as served_
from tests.production.gpu_worker import kill
from tests.production.served import state_of
from tests.tasks.samples import easy_rows, write_jsonl
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PASSWORD = "admin:planted-password"
HUB_TOKEN = "hf_plantedPlantedPlantedPlanted"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"a planted secret of 32 bytes ...").decode()
WHY = ["--by", "Ada", "--reason", "read ten answers"]


@pytest.fixture(scope="module")
def receivers():
    made = {name: Receiver() for name in ("consumer", "page", "inform")}
    yield made
    for each in made.values():
        each.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory, s3):
    secrets = {
        "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
        "PREFECT_API_AUTH_STRING": PASSWORD,
        "BURNISH_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "HF_TOKEN": HUB_TOKEN,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_REGION": s3.region,
    }
    server = served_.start(tmp_path_factory.mktemp("served"), **secrets)
    settings = {PREFECT_API_URL: server.api, PREFECT_API_AUTH_STRING: PASSWORD}
    try:
        with temporary_settings(settings):
            server.wait_for(served_.workers_are_ready, "workers that are ready")
            yield server
    finally:
        served_.stop(server)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_base):
    made = Place(tmp_path_factory.mktemp("cared"), tiny_base)
    write_jsonl(made.data, easy_rows(600))
    return made


@pytest.fixture(scope="module")
def deploy(served, place, s3, receivers):
    """Deploys a recipe with an S3 target and a webhook."""
    targets = [str(place.folder / "releases"), f"s3://{s3.make_bucket()}/releases"]
    settings = {
        "publish__targets": str(targets),
        "announce__webhooks": f"[{receivers['consumer'].url}]",
    }
    return lambda *options, **changes: served.deploy(place, *options, **settings | changes)


def start_run(deployment, **parameters):
    both = {**deployment.parameters, **parameters}
    with get_client(sync_client=True) as client:
        return client.create_flow_run_from_deployment(deployment.id, parameters=both)


class TestCare:
    def test_the_server_wants_its_password_and_refuses_forged_requests(self, served):
        assert httpx.get(f"{served.api}/flow_runs/count-by-state").status_code == 401
        name, _, password = PASSWORD.partition(":")
        forged = httpx.post(f"{served.api}/flow_runs/filter", json={}, auth=(name, password))
        assert (forged.status_code, "CSRF" in forged.text) == (403, True)

    def test_alarms_are_put_there_by_one_command_once(self, served, receivers):
        command = [sys.executable, "-m", "infra.automations"]
        urls = {f"BURNISH_{name.upper()}_URL": receivers[name].url for name in ("page", "inform")}
        counts = []
        for _ in range(2):
            subprocess.run(command, env=served.environment | urls, check=True)
            with get_client(sync_client=True) as client:
                found = client.request("POST", "/automations/filter", json={}).json()
            counts.append(len([each for each in found if each["name"].startswith("burnish ")]))
        assert counts == [7, 7]

    def test_a_release_waits_for_a_person_without_a_worker(self, served, place, deploy, receivers):
        run = start_run(deploy(name="cared", gate__approval="person"))
        served.wait_for(lambda: state_of(run.id).is_paused(), "the question")
        (proposal,) = proposals(place.store)
        served.wait_for(lambda: not processes_of(served, run.id), "the end of its process")
        assert place.log("cared") == []
        served.wait_for(lambda: "a release waits" in alarms(receivers["page"]), "the page")
        served.burnish("approve", str(run.id), *WHY)
        state = served.ended(run.id)
        assert state.name == "Released", state
        entry = place.log("cared")[-1]
        assert (entry.release.digest, entry.by) == (proposal.digest, "Ada")
        ((headers, body),) = receivers["consumer"].received
        assert Webhook(WEBHOOK_SECRET).verify(body, headers)["id"] == entry.event.id
        served.wait_for(lambda: "released" in alarms(receivers["inform"]), "the information")

    def test_a_rollback_by_form_is_not_undone_by_the_next_run(
        self, served, place, deploy, receivers
    ):
        second = deploy(name="cared", training__epochs=3)
        assert served.ended(start_run(second).id).name == "Released"
        first = place.log("cared")[1].release
        with get_client(sync_client=True) as client:
            form = client.read_deployment_by_name("rollback/burnish")
        undo = start_run(form, model="cared", reason="it swears", by="Ada")
        assert served.ended(undo.id).name == "Rolled back"
        entry = place.log("cared")[-1]
        assert (entry.release.digest, entry.cause) == (first.digest, "rollback")
        told = json.loads(receivers["consumer"].received[-1][1])
        assert (told["data"]["cause"], told["data"]["digest"]) == ("rollback", first.digest)
        held = served.ended(start_run(second).id)
        assert held.name == "Held"
        assert "burnish lift cared" in report_of(held)
        assert place.log("cared")[-1].number == entry.number
        served.wait_for(lambda: "held" in alarms(receivers["inform"]), "the information")

    def test_a_run_of_a_lost_machine_ends_and_goes_on_elsewhere(
        self, served, place, deploy, monkeypatch
    ):
        kept = {"training__epochs": 60, "training__checkpoint_minutes": 0.01}
        lost = start_run(deploy("--pool", "lost", name="lost", **kept))
        waiting = start_run(deploy(name="waiting", gate__approval="person"))
        machine = start_worker(served, "lost")
        served.wait_for(lambda: whole_checkpoints(place), "a checkpoint")
        served.wait_for(lambda: state_of(waiting.id).is_paused(), "the question")
        slow = start_run(deploy(name="slow", training__epochs=1000))
        served.wait_for(lambda: training_programs(served.process.pid), "the slow run")
        for process in [machine, *machine.children(recursive=True)]:
            kill(process)

        # A run's own beat in the store comes every 15 s, and the heartbeat every 30 s.
        monkeypatch.setattr(lost_runs, "INTERVALS", 1.5)
        with brief_client() as client:
            context = RunContext(store=place.store.uri)
            wait_for(
                lambda: list(tend.mark_lost_runs(client, tend.what_is_known(client), context)),
                "the lost run",
                300,
            )
        assert state_of(lost.id).is_crashed()
        assert state_of(waiting.id).is_paused()
        assert state_of(slow.id).is_running()
        assert "its worker or machine is gone" in reports_of(lost.id)[0]
        served.burnish("reject", str(waiting.id), *WHY)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(slow.id, Cancelling(), force=True)
            client.set_flow_run_state(lost.id, Scheduled(), force=True)
        machine = start_worker(served, "lost")
        assert served.ended(lost.id).name == "Released"
        assert any("it went on from step " in text for text in reports_of(lost.id))
        assert served.ended(waiting.id).name == "Rejected"
        kill(machine)

    def test_a_failure_calls_a_person_once(self, served, deploy, receivers):
        failing = deploy(name="failing", publish__targets="[hf://ci/failing]")
        assert served.ended(start_run(failing).id).is_failed()
        for _ in range(2):
            served.burnish("tend")
        served.wait_for(lambda: "a run failed" in alarms(receivers["page"]), "the page")
        texts = [each["text"] for each in receivers["page"].bodies]
        (text,) = [each for each in texts if each.startswith("failing: ")]
        assert "The page of run failing-" in text

    def test_no_secret_is_anywhere(self, served, place, receivers, s3):
        secrets = [PASSWORD.partition(":")[2], HUB_TOKEN, s3.secret_key, WEBHOOK_SECRET]
        secrets += [WEBHOOK_SECRET.removeprefix("whsec_"), "a planted secret of 32 bytes ..."]
        kept = {
            str(path): path.read_bytes()
            for folder in (served.home, place.folder)
            for path in folder.rglob("*")
            if path.is_file()
        }
        assert any(path.endswith("prefect.db") for path in kept)
        for name, each in receivers.items():
            kept |= {f"{name} {at}": body for at, (_, body) in enumerate(each.received)}
            kept |= {f"{name} headers": json.dumps([h for h, _ in each.received]).encode()}
        found = [
            (path, secret)
            for path, data in kept.items()
            for secret in secrets
            if secret.encode() in data
        ]
        assert found == []


class TestAPage:
    """The whole table is made by `make fault-table`."""

    @pytest.mark.parametrize("name", ["bad-recipe", "storage", "killed"])
    def test_says_what_to_do_and_that_works(self, served, tmp_path, tiny_base, name):
        row = try_case(name, CASES[name], tmp_path, served, tiny_base)
        assert row.problems == (), row


def alarms(receiver: Receiver) -> str:
    return " ".join(each["alarm"] for each in receiver.bodies)


def processes_of(served, run_id) -> list[psutil.Process]:
    """The processes of a run below the server's workers."""
    found = []
    for each in psutil.Process(served.process.pid).children(recursive=True):
        try:
            if each.environ().get("PREFECT__FLOW_RUN_ID") == str(run_id):
                found.append(each)
        except psutil.Error:
            continue
    return found


def start_worker(served, pool: str) -> psutil.Process:
    """Another machine's worker, as far as one machine can play two."""
    with open(served.home / f"worker-{pool}", "a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool],
            env={**os.environ, **served.environment, "PREFECT_API_URL": served.api},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return psutil.Process(process.pid)


def whole_checkpoints(place: Place) -> list[str]:
    kept = place.store.objects.sizes("artifacts/checkpoint/")
    return [path for path in kept if path.endswith("/manifest.json")]
