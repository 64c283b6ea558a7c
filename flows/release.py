"""From a verdict to what consumers see: release it, hold it, or find that it is there already."""

from __future__ import annotations

from prefect.states import State

from flows import approval, endings
from flows.producers import PRODUCERS
from tasks.contracts.errors import BaselineMoved, BurnishError, DamagedArtifact
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import Hold, LogEntry
from tasks.release import deployment_log
from tasks.release.announce import announce
from tasks.release.approval import Proposal, delete_proposal
from tasks.release.holds import quarantine_of, quarantine_sentence
from tasks.release.inputs import ReleaseInputs
from tasks.release.provenance import release_digest
from tasks.release.publish import finish, missing_targets, publish, publish_missing
from tasks.report.markdown import release_facts, rules_markdown
from tasks.report.run_report import RunReport, Section
from tasks.runtime.context import RunContext
from tasks.storage.store import open_store
from tasks.tend.alarms import inform_held


def finish_interrupted(name: str, channel: str, context: RunContext, report: RunReport) -> None:
    """Finish a release that an earlier run began to reveal, since it passed its gate."""
    claim = deployment_log.head(open_store(context.store), name, channel)
    if claim is None or claim.kind != "revealing":
        return
    version = claim.release.version
    report.status(f"Finishing version {version}, which run {claim.run} began to reveal.")
    try:
        announce(finish(claim, context), context)
        report.add_fact("finished", f"version {version}, which run {claim.run} began to reveal")
    except BaselineMoved:
        report.status(f"Version {version} was finished or replaced by another run.")
    except BurnishError as error:
        # This run's own release may replace it. Only what a step can make again is made first.
        if isinstance(error, DamagedArtifact) and error.kind in PRODUCERS:
            raise
        report.add_fact("not finished", f"version {version} of run {claim.run}: {error}")


def release(
    recipe: Recipe,
    inputs: ReleaseInputs,
    context: RunContext,
    report: RunReport,
    proposal: Proposal | None = None,
) -> State:
    """Publish and announce a promoted candidate, once a person has approved it if one must.

    Args:
        recipe: The recipe.
        inputs: What is released.
        context, report: Of the run.
        proposal: What this run has asked a person about already.
    """
    digest = release_digest(inputs.candidate, open_store(context.store))
    # Since it was scored, it may have been quarantined on another channel, whose log is another.
    if ended := held_back(digest, recipe, context, report):
        return ended
    if proposal or recipe.gate.approval == "person":
        answered = approve(recipe, inputs, context, report, proposal)
        if isinstance(answered, State):
            return answered
        inputs = answered
    report.status("Publishing.")
    entry = announce(publish(inputs, context), context)
    delete_proposal(open_store(context.store), context.run_id)
    published = entry.release
    for name, value in release_facts(entry):
        report.add_fact(name, value)
    sentence = f"Version {published.version} is deployed on {published.channel}."
    return endings.conclude("Released", sentence, recipe, context, report)


def approve(
    recipe: Recipe,
    inputs: ReleaseInputs,
    context: RunContext,
    report: RunReport,
    proposal: Proposal | None,
) -> ReleaseInputs | State:
    """What is released with a person's approval; or how the run ends without one."""
    store, later = open_store(context.store), ""
    if proposal is None:
        later = approval.waits_elsewhere(recipe, inputs, context)
        sentence = f"Run {later} waits for approval of the same candidate."
    elif proposal.superseded_by:
        later = proposal.superseded_by
        sentence = f"Run {later} has a newer candidate than version {proposal.version}."
    if later:
        delete_proposal(store, context.run_id)
        return endings.conclude("Superseded", sentence, recipe, context, report)
    answer = approval.ask(recipe, inputs, context, report, proposal)
    if answer.decision == "reject":
        delete_proposal(store, context.run_id)
        sentence = f"Rejected by {answer.by}: {answer.reason}"
        return endings.conclude("Rejected", sentence, recipe, context, report)
    report.resume()
    report.add_fact("approved", f"by {answer.by}: {answer.reason}")
    return inputs.model_copy(update={"approval": answer})


def held_back(digest: str, recipe: Recipe, context: RunContext, report: RunReport) -> State | None:
    """How a run ends that made a quarantined release again; None if it did not."""
    quarantine = quarantine_of(open_store(context.store), recipe.name, digest)
    if quarantine is None:
        return None
    sentence = quarantine_sentence(recipe.name, quarantine)
    return hold(quarantine, sentence, recipe, context, report)


def hold(
    held: Hold, sentence: str, recipe: Recipe, context: RunContext, report: RunReport
) -> State:
    """End a run that must not release what it made, or anything."""
    run = (context.run_id, context.run_name)
    inform_held(
        open_store(context.store), recipe.name, recipe.announce.channel, held, sentence, run
    )
    endings.explain("Held", report)
    return endings.conclude("Held", sentence, recipe, context, report)


def up_to_date(deployed: LogEntry, recipe: Recipe, context: RunContext, report: RunReport) -> State:
    """End a run whose candidate is already deployed: it is published where it is missing."""
    if missing_targets(deployed.release, recipe.publish):
        report.status("Publishing the deployed release where it is missing.")
        try:
            for publication in publish_missing(deployed, recipe.publish, context):
                report.add_fact("added", publication.uri)
        except DamagedArtifact as error:
            if error.kind in PRODUCERS:
                raise
            report.warn(
                f"The release is missing at a target, and cannot be published there. {error}"
            )
    verdict = deployed.event.data.verdict
    report.section(Section.GATE, rules_markdown(verdict))
    report.add_fact("verdict", f"{deployed.at}: {verdict.summary}")
    for name, value in release_facts(deployed):
        report.add_fact(name, value)
    sentence = f"Version {deployed.release.version} is what this recipe and data produce."
    return endings.conclude("Up to date", sentence, recipe, context, report)
