"""How likely the candidate of a run is to pass, said before it is trained."""

from __future__ import annotations

from contextlib import suppress

from flows import stage_inputs
from tasks.contracts.artifacts import Artifact
from tasks.contracts.candidate import Planned
from tasks.contracts.errors import BurnishError
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import LogEntry
from tasks.contracts.task_tables import METRICS
from tasks.finetune.step import finetune
from tasks.release import deployment_log
from tasks.release.anchor import anchor_of
from tasks.release.looks import earlier_scores
from tasks.report.run_report import RunReport
from tasks.runtime.context import RunContext
from tasks.storage.store import Store, open_store

EARLIER = 20
"""Earlier candidates whose scores are read."""
UNLIKELY = 0.5


def report_pass_chance(
    recipe: Recipe, planned: Planned, context: RunContext, report: RunReport
) -> None:
    """Say how likely a candidate as good as the earlier ones is to pass; a warning if it is not.

    Nothing is said before the first release, or if the training is recorded.
    """
    if finetune.cached(stage_inputs.finetune_inputs(recipe, planned), context) is not None:
        return
    store = open_store(context.store)
    deployed = deployment_log.deployed(store, recipe.name, recipe.announce.channel)
    if deployed is None:
        return
    # It informs: nothing fails because scores of long ago cannot be read.
    with suppress(BurnishError):
        chance = _chance(recipe, planned, deployed, store)
        if chance is not None:
            report.add_fact("chance", chance.sentence)
            if chance.chance < UNLIKELY:
                report.warn(chance.sentence)


def _chance(recipe: Recipe, planned: Planned, deployed: LogEntry, store: Store):
    # These load scipy, which a run without changes does not need.
    import pyarrow.parquet as pq

    from tasks.gate.pass_chance import chance_in_theory, pass_chance

    rules, examples = recipe.gate, planned.loaded.rows["test"]
    if rules.metric == "auto":
        rules = rules.model_copy(update={"metric": METRICS[recipe.task][0]})

    def table(artifact: Artifact):
        return pq.read_table(store.file(artifact, "scores.parquet"))

    anchor = anchor_of(store, deployed, rules.anchor)
    compared = [entry.release.artifact.digest for entry in (deployed, anchor) if entry]
    known = earlier_scores(store, recipe.name, EARLIER, compared)
    baseline_scores = known.pop(deployed.release.artifact.digest, None)
    anchor_scores = known.pop(anchor.release.artifact.digest, None) if anchor else None
    if baseline_scores is not None:
        found = pass_chance(
            [table(each) for each in known.values()],
            table(baseline_scores),
            table(anchor_scores) if anchor_scores else None,
            rules,
            examples,
        )
        if found is not None:
            return found
    verdict = deployed.event.data.verdict if deployed.event else None
    if verdict is None or not verdict.baseline_entry:
        return None  # How a first release differs from an untrained model says nothing.
    claims = [rule for rule in verdict.rules if rule.rule in ("better", "not worse")]
    return chance_in_theory(claims[0], rules, examples) if claims else None
