"""What passes the gate is released once a person says so, exactly as it was then."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelled

from flows.deployments import deploy
from flows.tend import tend
from tasks.contracts.approval import Answer
from tasks.release.approval import proposals, read_proposal, write_proposal
from tasks.release.provenance import provenance_of
from tests.flows.conftest import ROWS, Place, report_of, reports_of, task_states
from tests.flows.running import events_named, execute, start, write_recipe
from tests.flows.test_cli import run as run_command
from tests.tasks.samples import easy_rows, write_jsonl
from tests.waiting import wait_for

ANSWERED = ["--by", "Ada", "--reason", "read ten answers"]


class Asking:
    """A place with a deployment whose releases a person must approve."""

    def __init__(self, place: Place) -> None:
        self.place, self.name = place, f"asking-{uuid4().hex[:8]}"
        settings = {"name": self.name, "gate__approval": "person", "publish__targets": "[]"}
        settings["unlocked"] = "[gate.approval]"
        self.settings = settings
        deploy(write_recipe(place.recipe(**settings), place.folder), store=place.store.uri)

    def waiting(self, **changes):
        """A run that waits for approval."""
        run = start(self.name, **changes)
        state = execute(run.id)
        assert state.is_paused(), state
        return run

    def answer(self, run, decision: str):
        """Answer as the form does, and let the run go on."""
        answer = Answer(decision=decision, by="Ada", reason="read ten answers")
        with get_client(sync_client=True) as client:
            client.resume_flow_run(run.id, run_input=answer.model_dump())
        return execute(run.id)


@pytest.fixture(scope="module")
def asking(tmp_path_factory, tiny_base, prefect_session):
    place = Place(tmp_path_factory.mktemp("asking"), tiny_base)
    write_jsonl(place.data, easy_rows(ROWS))
    return Asking(place)


@pytest.fixture(autouse=True)
def server(prefect_env):
    """All of these tests need it."""


class TestARun:
    def test_waits_until_a_person_approves_and_then_publishes_what_was_stored(
        self, asking, capsys, monkeypatch
    ):
        run = asking.waiting()
        store = asking.place.store
        assert asking.place.log(asking.name) == []
        report = reports_of(run.id)[0]
        assert f"# {asking.name}: Waiting for approval" in report
        assert f"burnish approve {name_of(run.id)} --reason WHY" in report
        resource = f"burnish.model.{asking.name}.production"
        wait_for(lambda: events_named("burnish.approval.waiting", resource), "the alarm")
        proposed = read_proposal(store, str(run.id))

        # The worker's code changes meanwhile: nothing is computed again.
        monkeypatch.setattr("flows.retrain.train", None)
        status, _, _ = run_command(capsys, "approve", name_of(run.id), *ANSWERED)
        assert status == 0
        state = execute(run.id)
        assert state.name == "Released", state.message
        entry = asking.place.log(asking.name)[-1]
        assert entry.release.digest == proposed.digest
        assert (entry.by, entry.reason) == ("Ada", "read ten answers")
        approved = {"decision": "approve", "by": "Ada", "reason": "read ten answers"}
        assert provenance_of(entry.release, store)["approval"] == approved
        assert "by Ada: read ten answers" in report_of(state)
        assert read_proposal(store, str(run.id)) is None
        assert "publish" in task_states(state)

    def test_ends_rejected_if_a_person_says_so(self, asking):
        run = asking.waiting(training__epochs=3)
        state = asking.answer(run, "reject")
        assert state.name == "Rejected"
        assert "Rejected by Ada: read ten answers" in state.message
        assert proposals(asking.place.store) == []

    def test_ends_rejected_after_its_deadline(self, asking):
        run = asking.waiting(training__epochs=3)
        store = asking.place.store
        tend()
        assert read_proposal(store, str(run.id)), "it has time"
        late = (datetime.now(UTC) - timedelta(minutes=1)).isoformat(timespec="seconds")
        proposal = read_proposal(store, str(run.id))
        write_proposal(store, proposal.model_copy(update={"deadline": late}))
        tend()
        state = execute(run.id)
        assert state.name == "Rejected"
        assert f"Rejected by nobody: no answer until {late}" in state.message

    def test_asks_again_if_the_log_has_moved(self, asking):
        run = asking.waiting(training__epochs=3)
        other = start(asking.name, training__epochs=4, gate__approval="none")
        assert execute(other.id).name == "Released"
        state = asking.answer(run, "approve")
        assert state.is_paused()
        proposal = read_proposal(asking.place.store, str(run.id))
        newest = asking.place.log(asking.name)[-1]
        assert proposal.inputs.log_number == newest.number
        assert proposal.inputs.candidate.gate_result.verdict.baseline == newest.release.version
        state = asking.answer(run, "approve")
        assert state.name == "Released"


class TestACancelledRun:
    def test_does_not_wait_any_more_and_its_page_says_so(self, asking):
        run = asking.waiting(training__epochs=7)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Cancelled(), force=True)
        tend()
        assert read_proposal(asking.place.store, str(run.id)) is None
        report = reports_of(run.id)[0]
        assert report.startswith(f"# {asking.name}: Cancelled")
        assert "Nothing was published by this run." in report


class TestTwoRuns:
    def test_with_a_newer_candidate_the_older_one_ends(self, asking):
        older = asking.waiting(training__epochs=5)
        newer = asking.waiting(training__epochs=6)
        state = execute(older.id)
        assert state.name == "Superseded"
        assert f"Run {name_of(newer.id)} has a newer candidate" in state.message
        assert asking.answer(newer, "reject").name == "Rejected"

    def test_with_the_same_candidate_the_newer_one_ends(self, asking):
        older = asking.waiting(training__epochs=5)
        newer = execute(start(asking.name, training__epochs=5).id)
        assert newer.name == "Superseded"
        assert f"Run {name_of(older.id)} waits for approval" in newer.message
        assert asking.answer(older, "reject").name == "Rejected"


class TestAForm:
    def test_that_is_left_empty_is_refused(self, asking):
        run = asking.waiting(training__epochs=5)
        for empty in ({}, {"decision": "approve", "by": "", "reason": ""}):
            with get_client(sync_client=True) as client:
                answer = client.resume_flow_run(run.id, run_input=empty)
            assert answer.status.value == "REJECT"
        assert asking.answer(run, "reject").name == "Rejected"


class TestWithoutADeployment:
    def test_a_run_cannot_wait_and_says_so_before_it_computes(self, asking):
        state = asking.place.run(**asking.settings)
        assert state.name == "Bad recipe"
        assert "run `burnish deploy` on this recipe" in state.message
        assert task_states(state) == {}

    def test_what_does_not_wait_cannot_be_approved(self, capsys):
        status, _, err = run_command(capsys, "approve", "some-run", *ANSWERED)
        assert (status, "run some-run: found" in err) == (1, True)


def name_of(run_id) -> str:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).name
