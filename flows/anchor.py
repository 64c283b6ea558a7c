"""The anchor of a run: which release it is, and how it is scored."""

from __future__ import annotations

from dataclasses import dataclass

from flows.score_inputs import restored_score_inputs
from tasks.contracts.artifacts import Artifact
from tasks.contracts.candidate import Planned
from tasks.contracts.errors import BadRecipe, BurnishError
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import LogEntry
from tasks.contracts.verdict import AnchorState
from tasks.evaluate.step import ScoreInputs
from tasks.release import deployment_log
from tasks.release.anchor import FIRST, NONE, anchor_of, metric_of
from tasks.release.provenance import seen_inputs
from tasks.runtime.context import RunContext
from tasks.storage.store import open_store


@dataclass(frozen=True)
class AnchorChoice:
    """The anchor of a run.

    Attributes:
        state: Which release it is; without a version on a first run.
        scoring: How it is scored; None if it cannot be, or on a first run.
        seen: The artifact with the hashes of the inputs it was trained on; None if unknown.
        metric: By which it passed its own gate; empty if unknown.
        problem: Why it cannot be scored; empty if it can.
        fixed: Whether the recipe names it.
    """

    state: AnchorState
    scoring: ScoreInputs | None = None
    seen: Artifact | None = None
    metric: str = ""
    problem: str = ""
    fixed: bool = False


def check_anchor(recipe: Recipe, context: RunContext) -> None:
    """Refuse a recipe that names an anchor which there is not, before anything is computed.

    Raises:
        BadRecipe: No such release was deployed, or it is quarantined.
    """
    chosen, store = recipe.gate.anchor, open_store(context.store)
    if chosen in (FIRST, NONE):
        return
    deployed = deployment_log.deployed(store, recipe.name, recipe.announce.channel)
    if deployed is None:
        raise BadRecipe(
            "gate.anchor",
            f"{chosen!r}, but nothing is deployed on {recipe.announce.channel}",
            "first or none, until there is a release",
            "set gate.anchor to first",
        )
    anchor_of(store, deployed, chosen)


def choose_anchor(
    recipe: Recipe, planned: Planned, deployed: LogEntry | None, context: RunContext
) -> AnchorChoice | None:
    """The run's anchor, its files restored; None if the recipe wants none.

    Raises:
        BadRecipe: The recipe names a release that there is not.
    """
    chosen = recipe.gate.anchor
    if chosen == NONE:
        return None
    if deployed is None:
        return AnchorChoice(AnchorState(moves="it is the first release"))
    store = open_store(context.store)
    entry = anchor_of(store, deployed, chosen)
    release, fixed = entry.release, chosen != FIRST
    state = AnchorState(version=release.version, entry=entry.number)
    task = entry.event.data.task if entry.event else recipe.task
    if task != recipe.task and not fixed:
        moves = f"the task has changed from {task} to {recipe.task}"
        return AnchorChoice(AnchorState(moves=moves))
    try:
        scoring = restored_score_inputs(recipe, planned, release, context)
    except BurnishError as error:
        problem = f"The anchor {release.version} cannot be restored: {error}."
        return AnchorChoice(state, metric=metric_of(entry), problem=problem, fixed=fixed)
    seen = seen_inputs(release, store)
    return AnchorChoice(state, scoring, seen, metric_of(entry), fixed=fixed)
