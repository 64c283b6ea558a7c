"""When data are worth a retraining, and when a person must look first."""

from datetime import UTC, datetime, timedelta

import pytest

from tasks.contracts.recipe_watch import WatchRecipe
from tasks.watch.decide import after_look, after_unreachable, decide, decide_on_rows
from tasks.watch.records import Accepted, DataVerdict, Seen, WatchState

START = datetime(2026, 11, 27, 3, tzinfo=UTC)
SETTINGS = WatchRecipe(every_minutes=5, quiet_minutes=10, longest_wait_minutes=60, attempts=2)


def minutes(number: float) -> datetime:
    return START + timedelta(minutes=number)


def verdict(digest: str, rows: int = 1000, labels: tuple[str, ...] = ()) -> DataVerdict:
    data = Seen(digest=digest, rows=rows, labels=labels)
    return DataVerdict(data=data, outcome="Released", run="calm-otter", run_id="r", at="then")


def accepted(digest: str, attempts: int = 0) -> Accepted:
    return Accepted(digest=digest, attempts=attempts, at="then")


class Watch:
    """Looks again and again, and remembers."""

    def __init__(self, **settings) -> None:
        self.state, self.settings = WatchState(), SETTINGS.model_copy(update=settings)
        self.verdict: DataVerdict | None = None
        self.accepted: Accepted | None = None

    def look(self, at: float, digest: str, attempt: str = "none"):
        state = after_look(self.state, digest, self.verdict, minutes(at))
        decision = decide(state, self.verdict, self.accepted, attempt, self.settings, minutes(at))
        self.state = decision.state
        return decision

    def outcome(self, at: float, digest: str, attempt: str = "none") -> str:
        return self.look(at, digest, attempt).outcome

    def tried(self, times: int) -> None:
        changes = {"attempts": times, "run_id": "r", "run_name": "brave-newt"}
        self.state = self.state.model_copy(update=changes)


class TestQuiet:
    def test_data_that_still_change_are_waited_for(self):
        watch = Watch()
        first = watch.look(0, "a")
        assert (first.outcome, first.look_again) == ("Waiting", minutes(10))
        assert "waiting until nothing has changed for 10.0 minutes" in first.sentence
        assert watch.outcome(9, "b") == "Waiting"
        assert watch.outcome(18, "b") == "Waiting"
        assert watch.outcome(19, "b") == "Ready"

    def test_data_that_never_settle_are_trained_on_after_the_longest_wait(self):
        watch = Watch()
        found = [watch.outcome(5 * n, f"data {n}") for n in range(14)]
        assert found == ["Waiting"] * 12 + ["Ready"] * 2

    def test_a_verdict_ends_the_wait_for_the_data_that_come_next(self):
        watch = Watch()
        watch.look(0, "a")
        watch.verdict = verdict("a")
        assert watch.outcome(59, "a") == "Nothing new"
        assert watch.outcome(61, "b") == "Waiting"

    def test_data_that_went_back_to_an_earlier_state_are_new_again(self):
        watch = Watch(quiet_minutes=0)
        watch.verdict = verdict("b")
        assert watch.outcome(0, "a") == "Ready"


class TestAttempts:
    def test_data_are_not_trained_on_twice_at_once(self):
        watch = Watch(quiet_minutes=0)
        watch.look(0, "a")
        watch.tried(1)
        assert watch.outcome(5, "a", "under way") == "Retraining"

    def test_runs_that_fail_for_a_cause_that_may_pass_are_tried_again_to_a_limit(self):
        watch = Watch(quiet_minutes=0)
        watch.look(0, "a")
        watch.tried(1)
        assert watch.outcome(5, "a", "may pass") == "Ready"
        watch.tried(2)
        held = watch.look(10, "a", "may pass")
        assert held.outcome == "Held"
        assert held.sentence == "All 2 runs on these data failed; the last one was brave-newt."
        assert watch.outcome(15, "a", "may pass") == "Held"

    @pytest.mark.parametrize("attempt", ["failed", "cancelled"])
    def test_what_a_retry_does_not_mend_is_held_at_once(self, attempt):
        watch = Watch(quiet_minutes=0)
        watch.look(0, "a")
        watch.tried(1)
        assert watch.outcome(5, "a", attempt) == "Held"

    def test_new_data_get_attempts_of_their_own(self):
        watch = Watch(quiet_minutes=0)
        watch.look(0, "a")
        watch.tried(2)
        assert watch.outcome(5, "a", "may pass") == "Held"
        assert watch.outcome(10, "b") == "Ready"
        assert watch.state.attempts == 0

    def test_accepted_data_get_as_many_again(self):
        watch = Watch(quiet_minutes=0)
        watch.look(0, "a")
        watch.tried(2)
        watch.look(5, "a", "may pass")
        watch.accepted = accepted("a", attempts=2)
        assert watch.outcome(10, "a", "may pass") == "Ready"
        watch.tried(4)
        assert watch.outcome(15, "a", "may pass") == "Held"


class TestRows:
    def decided(self, rows, labels=(), at=0.0, accept=None, **settings):
        state = after_look(WatchState(), "new", None, START)
        return decide_on_rows(
            state,
            Seen(digest="new", rows=rows, labels=labels),
            Seen(digest="old", rows=1000, labels=("a", "b")),
            accept,
            SETTINGS.model_copy(update=settings),
            minutes(at),
        )

    def test_a_fifth_fewer_are_held_for_a_person(self):
        assert self.decided(800, ("a", "b")).outcome == "Ready"
        held = self.decided(799, ("a", "b"))
        assert held.outcome == "Held"
        assert held.sentence == "799 rows are left of 1,000: more than 20% are gone."
        assert held.state.held == held.sentence

    def test_a_label_that_is_gone_is_held_for_a_person(self):
        assert self.decided(1000, ("b", "c")).sentence == "No row has the label a any more."

    def test_what_a_person_accepted_is_trained_on(self):
        assert self.decided(10, (), accept=accepted("new")).outcome == "Ready"
        assert self.decided(10, (), accept=accepted("other")).outcome == "Held"

    @pytest.mark.parametrize(
        ("rows", "outcome"), [(1049, "Waiting"), (1050, "Ready"), (951, "Waiting"), (950, "Ready")]
    )
    def test_few_new_ones_wait_for_more(self, rows, outcome):
        assert self.decided(rows, ("a", "b"), min_rows=50).outcome == outcome
        assert self.decided(rows, ("a", "b"), min_share=0.05).outcome == outcome

    def test_few_new_ones_do_not_wait_for_ever(self):
        one_day = {"min_rows": 500, "max_age_hours": 24}
        assert self.decided(1001, ("a", "b"), at=24 * 60 - 1, **one_day).outcome == "Waiting"
        assert self.decided(1001, ("a", "b"), at=24 * 60, **one_day).outcome == "Ready"


class TestUnreachable:
    def test_data_are_waited_for_and_then_a_person_is_called(self):
        state = WatchState(digest="a", attempts=1)
        first = after_unreachable(state, "no route", SETTINGS, START)
        assert first.outcome == "Waiting"
        second = after_unreachable(first.state, "no route", SETTINGS, minutes(59))
        assert second.outcome == "Waiting"
        third = after_unreachable(second.state, "no route", SETTINGS, minutes(60))
        assert (third.outcome, "no route" in third.sentence) == ("Held", True)

    def test_data_that_are_back_are_not_held_any_more(self):
        watch = Watch(quiet_minutes=0, longest_wait_minutes=0)
        watch.look(0, "a")
        held = after_unreachable(watch.state, "no route", watch.settings, minutes(5))
        assert (held.outcome, held.state.acceptable) == ("Held", False)
        watch.state = held.state
        assert watch.outcome(10, "a") == "Ready"

    def test_a_look_that_reaches_them_forgets_it_and_keeps_the_attempts(self):
        state = after_unreachable(WatchState(digest="a", attempts=1), "x", SETTINGS, START).state
        seen = after_look(state, "a", None, minutes(5))
        assert (seen.unreachable_since, seen.attempts) == ("", 1)
