"""What a data owner sees: one artifact for each recipe, which its watch keeps current. When the
outcome changes, it gets a new version, so that its versions tell what happened."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_run
from prefect.utilities.urls import url_for

from tasks.contracts.recipe_watch import WatchRecipe
from tasks.report.markdown import markdown_table
from tasks.runtime.logs import run_logger
from tasks.runtime.prefect_api import brief_client
from tasks.watch.records import WatchState


def show_card(
    name: str, state: WatchState, settings: WatchRecipe, look_again: datetime | None
) -> str:
    """Bring the artifact of a recipe's data up to date. A watch does not fail because it cannot.

    Args:
        name: The recipe's name.
        state: What the watch found.
        settings: The recipe's.
        look_again: When it looks again, if before the next look of its schedule.

    Returns:
        The artifact's id; empty if it could not be written.
    """
    text = card_markdown(name, state, settings, look_again)
    description = f"{name} data · {state.outcome}. {state.sentence}"[:200]
    try:
        with brief_client() as client:
            if state.artifact:
                try:
                    change = ArtifactUpdate(data=text, description=description)
                    client.update_artifact(UUID(state.artifact), change)
                    return state.artifact
                except ObjectNotFound:
                    pass  # Of another server, or deleted: a new one is made.
            made = client.create_artifact(
                ArtifactCreate(
                    key=f"data-{name}",
                    type="markdown",
                    description=description,
                    data=text,
                    flow_run_id=UUID(this_run.id) if this_run.id else None,
                )
            )
            return str(made.id)
    except Exception as error:
        run_logger().warning("could not write what the data's owner sees: %s", error)
        return ""


def card_markdown(
    name: str, state: WatchState, settings: WatchRecipe, look_again: datetime | None
) -> str:
    """The artifact's text."""
    looked = datetime.fromisoformat(state.looked_at)
    by_schedule = looked + timedelta(minutes=settings.every_minutes)
    next_look = min(filter(None, [look_again, by_schedule]))
    attempts = f"{state.attempts} of {settings.attempts}" if state.attempts else "none yet"
    rows = [
        ("last look", _moment(looked)),
        ("last change seen", _moment(datetime.fromisoformat(state.changed_at or state.looked_at))),
        ("retrainings of these data", attempts),
        *([("last of them", _run_link(state))] if state.run_name else []),
        ("next look", f"{_moment(next_look)}, or when `burnish data-changed {name}` is run"),
    ]
    parts = [f"# {name} data: {state.outcome}", state.sentence, markdown_table(("", ""), rows)]
    if state.outcome == "Held":
        parts.insert(2, next_action(name, state))
    return "\n\n".join(parts) + "\n"


def next_action(name: str, state: WatchState) -> str:
    """What is so, and what to do, while data are held."""
    accept = f", or accept them as they are: `burnish accept-data {name}`"
    return (
        "Nothing was retrained, and what is deployed stays. Correct the data"
        f"{accept if state.acceptable else ': the watch then goes on by itself'}."
    )


def _run_link(state: WatchState) -> str:
    link = url_for("flow-run", obj_id=state.run_id)
    return f"[{state.run_name}]({link})" if link else state.run_name


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
