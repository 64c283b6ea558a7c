"""What a person took back, or froze, no run releases."""

from __future__ import annotations

import shutil

import pytest

from flows import retrain as flow
from flows.rollback import rollback
from tasks.release import deployment_log, holds
from tests.flows.conftest import ROWS, Place, report_of, task_states
from tests.flows.running import events_named
from tests.flows.test_cli import run as run_command
from tests.tasks.samples import easy_rows, write_jsonl
from tests.waiting import wait_for

# Copies of a store would all publish where the first one did.
NEXT = {"training__epochs": 3, "publish__targets": "[]"}
RESOURCE = "burnish.model.tiny.production"


@pytest.fixture(scope="module")
def released(tmp_path_factory, tiny_base, prefect_session):
    """A place where two runs were released."""
    place = Place(tmp_path_factory.mktemp("released"), tiny_base)
    write_jsonl(place.data, easy_rows(ROWS))
    assert place.run(publish__targets="[]").name == "Released"
    assert place.run(**NEXT).name == "Released"
    return place


@pytest.fixture
def place(released, tmp_path, prefect_env, monkeypatch):
    """A copy of it, whose store the deployment of a flow would name."""
    shutil.copytree(released.folder, tmp_path / "place")
    monkeypatch.setenv("BURNISH_STORE", str(tmp_path / "place" / "store"))
    return Place(tmp_path / "place", released.base)


@pytest.fixture
def rolled_back(place):
    """The state of a rollback of the second release."""
    return rollback("tiny", "it swears", "Ada", return_state=True)


class TestRollback:
    def test_says_on_its_page_what_is_deployed_now(self, place, rolled_back):
        assert rolled_back.name == "Rolled back"
        first, second = (entry for entry in place.log()[:4] if entry.kind == "deployed")
        report = report_of(rolled_back)
        assert f"Version {first.release.version} is deployed on production again" in report
        assert f"burnish lift tiny {second.release.version} --reason WHY" in report
        assert "it swears (Ada)" in report

    def test_is_not_undone_by_the_next_run_but_by_a_person(self, place, rolled_back, capsys):
        deployed = deployment_log.deployed(place.store, "tiny", "production")
        left = deployed.event.data.previous
        state = place.run(**NEXT)
        assert state.name == "Held"
        assert f"Version {left} is quarantined by Ada since" in state.message
        # It was known before anything was scored.
        steps = task_states(state)
        assert "finetune" in steps and "evaluate" not in steps
        newest = deployment_log.deployed(place.store, "tiny", "production")
        assert newest.number == deployed.number

        # Every night's run meets it, and one event tells of it.
        place.run(**NEXT)
        wait_for(lambda: events_named("burnish.model.held", RESOURCE), "the event")
        assert len(events_named("burnish.model.held", RESOURCE)) == 1

        store = ["--store", place.store.uri]
        arguments = ["lift", "tiny", left, "--reason", "it was the prompt", *store]
        status, out, _ = run_command(capsys, *arguments)
        assert (status, f"version {left} may be deployed again" in out) == (0, True)
        assert place.run(**NEXT).name == "Released"
        assert place.log()[-1].release.version == left

    def test_is_where_the_next_gate_starts_from(self, place, rolled_back):
        deployed = deployment_log.deployed(place.store, "tiny", "production")
        state = place.run(**NEXT | {"training__epochs": 4})
        assert state.name in ("Released", "Rejected")
        assert f"against {deployed.release.version}" in report_of(state)

    def test_that_cannot_be_done_fails_with_what_to_do(self, rolled_back):
        state = rollback("tiny", "it swears", "Ada", return_state=True)
        assert state.name == "Bad request"
        assert "only quarantined earlier releases" in state.message
        assert "start a new run with other values" in report_of(state)


class TestFreeze:
    def test_holds_runs_before_they_compute_until_it_ends(self, place, capsys):
        store = ["--store", place.store.uri]
        hold = ["tiny", "--by", "Ada", "--reason", "a holiday", *store]
        assert run_command(capsys, "freeze", *hold)[0] == 0
        state = place.run(**NEXT)
        assert state.name == "Held"
        assert "Channel production is frozen by Ada since" in state.message
        assert task_states(state) == {}
        assert run_command(capsys, "unfreeze", *hold)[0] == 0
        assert place.run(**NEXT).name == "Up to date"

    def test_that_comes_while_a_run_trains_holds_it(self, place, monkeypatch):
        def release(recipe, inputs, context, report):
            holds.freeze(place.store, "tiny", "production", "Ada", "a holiday")
            monkeypatch.setattr(flow, "release", published)
            return published(recipe, inputs, context, report)

        published = flow.release
        monkeypatch.setattr(flow, "release", release)
        assert place.run(**NEXT | {"training__epochs": 4}).name == "Held"
        assert [entry.kind for entry in place.log()][4:] == ["frozen"]

    def test_does_not_leave_a_rollback_half_revealed(self, place, monkeypatch):
        holds.freeze(place.store, "tiny", "production", "Ada", "a holiday")
        with monkeypatch.context() as patch:
            patch.setattr("tasks.release.rollback.finish_now", _fail)
            state = rollback("tiny", "it swears", "Ada", return_state=True)
        assert state.is_failed()
        assert "may be visible at some targets, but it is not announced" in report_of(state)
        assert place.run(**NEXT).name == "Held"
        entry = place.log()[-1]
        assert (entry.kind, entry.cause, entry.by) == ("deployed", "rollback", "Ada")


class TestCommands:
    def test_roll_back_without_a_server(self, place, capsys, monkeypatch):
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        arguments = ["--reason", "it swears", "--store", place.store.uri]
        status, out, _ = run_command(capsys, "rollback", "tiny", *arguments)
        entry = place.log()[-1]
        assert (status, entry.cause) == (0, "rollback")
        assert f"version {entry.release.version} is deployed on production again" in out
        assert "@" in entry.by

    @pytest.mark.parametrize("command", ["rollback", "freeze", "unfreeze"])
    def test_want_a_reason(self, place, capsys, command):
        arguments = ["--reason", " ", "--store", place.store.uri]
        status, _, err = run_command(capsys, command, "tiny", *arguments)
        assert (status, "--reason: found an empty text" in err) == (1, True)


def _fail(*_):
    raise OSError("killed")
