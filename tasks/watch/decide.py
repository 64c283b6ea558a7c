"""Whether data are worth a retraining: plain functions of what is there and what is remembered."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from tasks.contracts.base import Contract
from tasks.contracts.recipe_watch import WatchRecipe
from tasks.report.markdown import time_words
from tasks.watch.records import Accepted, DataVerdict, Seen, WatchState

Attempt = Literal["none", "under way", "may pass", "failed", "cancelled"]
"""The last retraining of the data now: there is none that counts; it has not ended; it failed for a
cause that may pass, or for another one; a person cancelled it."""


class Decision(Contract):
    """What to do about the data now.

    Attributes:
        outcome: In a word or two: the name of the watch's last state.
        sentence: Why.
        state: What to remember.
        look_again: When to look again, if that is before the next look of the schedule.
    """

    outcome: Literal["Nothing new", "Waiting", "Retraining", "Held", "Ready"]
    sentence: str
    state: WatchState
    look_again: datetime | None = None


def after_look(
    state: WatchState, digest: str, verdict: DataVerdict | None, now: datetime
) -> WatchState:
    """The state, brought up to the data that are there now.

    Args:
        state: What was seen last.
        digest: Of the data now.
        verdict: Which data reached a verdict last.
        now: The time.
    """
    at = now.isoformat(timespec="seconds")
    changes: dict[str, object] = {"looked_at": at, "unreachable_since": ""}
    if digest != state.digest:
        changes |= {"digest": digest, "changed_at": at, "attempts": 0, "run_id": "", "run_name": ""}
    if digest != state.digest or state.unreachable_since:
        changes |= {"held": ""}
    if verdict and verdict.data.digest == digest:
        changes |= {"waiting_since": "", "held": ""}
    elif not state.waiting_since:
        changes |= {"waiting_since": at}
    return state.model_copy(update=changes)


def decide(
    state: WatchState,
    verdict: DataVerdict | None,
    accepted: Accepted | None,
    attempt: Attempt,
    settings: WatchRecipe,
    now: datetime,
) -> Decision:
    """Decide as far as that takes no reading of the data; `Ready` if they are to be read.

    Args:
        state: As `after_look` returned it.
        verdict: Which data reached a verdict last.
        accepted: Which data a person accepted last.
        attempt: How the last retraining of these data fared.
        settings: The recipe's.
        now: The time.
    """
    if verdict and verdict.data.digest == state.digest:
        sentence = f"Run {verdict.run} has used these data: {verdict.outcome}."
        return Decision(outcome="Nothing new", sentence=sentence, state=state)
    trusted = accepted is not None and accepted.digest == state.digest
    if state.held and not trusted:
        return Decision(outcome="Held", sentence=state.held, state=state)
    state = state.model_copy(update={"held": ""})
    if attempt == "under way":
        sentence = f"Run {state.run_name} retrains on these data."
        return Decision(outcome="Retraining", sentence=sentence, state=state)
    tried = state.attempts - (accepted.attempts if trusted else 0)
    if attempt == "cancelled" and tried:
        return hold(state, f"A person cancelled run {state.run_name} on these data.")
    if attempt == "failed" and tried:
        reason = f"Run {state.run_name} on these data failed for a cause that will not pass."
        return hold(state, reason)
    if attempt == "may pass" and tried >= settings.attempts:
        reason = f"All {tried} runs on these data failed; the last one was {state.run_name}."
        return hold(state, reason)
    return _wait_for_quiet(state, settings, now)


def after_unreachable(
    state: WatchState, error: str, settings: WatchRecipe, now: datetime
) -> Decision:
    """What to do while the data cannot be reached: wait, and call a person if that lasts."""
    at = now.isoformat(timespec="seconds")
    since = state.unreachable_since or at
    state = state.model_copy(update={"looked_at": at, "unreachable_since": since})
    sentence = f"The data cannot be reached since {since}: {error}"
    limit = timedelta(minutes=settings.longest_wait_minutes)
    if now - datetime.fromisoformat(since) < limit:
        return Decision(outcome="Waiting", sentence=sentence, state=state)
    return hold(state, sentence, acceptable=False)


def _wait_for_quiet(state: WatchState, settings: WatchRecipe, now: datetime) -> Decision:
    quiet = datetime.fromisoformat(state.changed_at) + timedelta(minutes=settings.quiet_minutes)
    latest = datetime.fromisoformat(state.waiting_since) + timedelta(
        minutes=settings.longest_wait_minutes
    )
    until = min(quiet, latest)
    if now < until:
        sentence = (
            f"The data changed at {state.changed_at}: waiting until nothing has changed for "
            f"{time_words(60 * settings.quiet_minutes)}."
        )
        return Decision(outcome="Waiting", sentence=sentence, state=state, look_again=until)
    return Decision(outcome="Ready", sentence="The data have settled.", state=state)


def decide_on_rows(
    state: WatchState,
    data: Seen,
    before: Seen | None,
    accepted: Accepted | None,
    settings: WatchRecipe,
    now: datetime,
) -> Decision:
    """Decide whether settled data are worth a retraining, and may be trusted.

    Args:
        state: The state.
        data: The data now.
        before: The data that reached a verdict last; None if none did.
        accepted, settings, now: As in `decide`.
    """
    trusted = accepted is not None and accepted.digest == state.digest
    if before is None:
        return Decision(outcome="Ready", sentence=f"{data.rows:,} rows are new.", state=state)
    if not trusted and (reason := _suspicious(data, before, settings)):
        return hold(state, reason)
    more = data.rows - before.rows
    needed = max(settings.min_rows, settings.min_share * before.rows)
    change = f"{more:+,} rows since the last retraining, {data.rows:,} in all"
    old = timedelta(hours=settings.max_age_hours)
    aged = old and now - datetime.fromisoformat(state.waiting_since) >= old
    if not trusted and abs(more) < needed and not aged:
        sentence = f"{change}: waiting for {needed:,.0f}."
        return Decision(outcome="Waiting", sentence=sentence, state=state)
    return Decision(outcome="Ready", sentence=f"{change}.", state=state)


def _suspicious(data: Seen, before: Seen, settings: WatchRecipe) -> str:
    if data.rows < (1 - settings.max_shrink) * before.rows:
        return (
            f"{data.rows:,} rows are left of {before.rows:,}: more than {settings.max_shrink:.0%} "
            "are gone."
        )
    gone = sorted(set(before.labels) - set(data.labels))
    if gone:
        return f"No row has the label {', '.join(gone)} any more."
    return ""


def hold(state: WatchState, reason: str, acceptable: bool = True) -> Decision:
    """Do not retrain on these data until they change or, if that can help, a person accepts them.

    Args:
        state: The state.
        reason: Why, as a sentence.
        acceptable: Whether the data could be trained on as they are.
    """
    held = state.model_copy(update={"held": reason, "acceptable": acceptable})
    return Decision(outcome="Held", sentence=reason, state=held)
