"""Retrain: load → inspect → tokenize → finetune → evaluate → gate → publish → announce.

Start it with `burnish retrain RECIPE`, or from the Prefect UI.
A run ends *Released*, *Up to date*, *Rejected* or *Held*, or fails under the name of its cause.
A cancelled run ends *Cancelled*; one that was stopped otherwise ends *Crashed*.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment
from prefect.runtime import flow_run as this_run
from prefect.states import State

from flows import endings, score_inputs, stage_inputs
from flows.anchor import check_anchor, choose_anchor
from flows.approval import check_can_wait, earlier_proposal
from flows.on_pool import score_on_pool, train_on_pool, with_pool
from flows.pass_chance import report_pass_chance
from flows.producers import PRODUCERS
from flows.recipe_files import read_recipe
from flows.release import finish_interrupted, held_back, hold, release, up_to_date
from flows.score import score_and_decide
from flows.train import plan_training, train
from tasks.contracts.candidate import Trained
from tasks.contracts.errors import (
    BadRecipe,
    BaselineMoved,
    BurnishError,
    CodeFailed,
    DamagedArtifact,
    PoolChanged,
    describe,
)
from tasks.contracts.recipe import Recipe
from tasks.contracts.recipe_changes import NO_CHANGES, Changes
from tasks.evaluate.benchmark_step import BenchmarkTasks, check_benchmarks
from tasks.evaluate.llm_judge_client import api_key
from tasks.release import deployment_log
from tasks.release.delivery import deliver_owed, set_webhooks
from tasks.release.holds import (
    freeze_of,
    freeze_sentence,
)
from tasks.release.provenance import data_report, release_digest
from tasks.release.publish import open_targets
from tasks.release.webhooks import webhook_secret
from tasks.report.run_report import Origin, RunReport, Section
from tasks.runtime.context import RunContext
from tasks.runtime.prefect_api import brief_client
from tasks.runtime.run_beat import beating
from tasks.runtime.termination import watch_sigterm
from tasks.storage.source_copies import KIND as SOURCE_COPY
from tasks.storage.store import default_store, open_store
from tasks.watch.records import DataVerdict, seen, write_verdict

Refresh = Literal[
    "nothing",
    "load",
    "gguf",
    "inspect",
    "tokenize",
    "forecast",
    "finetune",
    "gguf-export",
    "evaluate",
    "llm-judge",
    "benchmarks",
    "gate",
]
STEPS = get_args(Refresh)[1:]

ATTEMPTS = 3
SCHEDULED_TAG = "auto-scheduled"
"""Prefect tags the runs of schedules with it."""


@flow(
    name="retrain",
    flow_run_name=endings.run_name,
    validate_parameters=True,
    on_cancellation=[endings.close_report_of_ended_run],
    on_crashed=[endings.close_report_of_ended_run],
)
def retrain(recipe: str, changes: Changes = NO_CHANGES, refresh: Refresh = "nothing") -> State:
    """Retrain a model, and release it if it passes the gate.

    Args:
        recipe: What to retrain, and how: a shipped recipe's name, a file, or
            s3://bucket/recipe.yaml.
        changes: What to do differently in this run only.
        refresh: Repeat this step and all after it, even if nothing changed.
    """
    if this_run.run_count > 1:
        endings.tag_outcome(this_run.id or "")  # What an earlier try ended with is not so now.
    if later := later_due_run():
        return endings.supersede(later, recipe)
    try:
        refuse_other_recipe(recipe)
        checked = read_recipe(recipe, changes, locked=deployment.id is not None).resolved()
        checked = checked.model_copy(update={"store": checked.store or default_store()})
    except BurnishError as error:
        return endings.refuse(error, recipe)
    origin = Origin(checked.store, checked.name, checked.announce.channel)
    report = RunReport(checked.name, this_run.id or "", deployment.id is not None, origin=origin)
    if changed := changes.words():
        report.add_fact("changed", f"`{changed}`")
    values = yaml.safe_dump(checked.model_dump(mode="json"), sort_keys=False)
    report.section(Section.RECIPE, f"```yaml\n{values}```")
    context = RunContext(
        store=checked.store,
        run_id=this_run.id or "",
        run_name=this_run.name or "",
        refresh=STEPS[STEPS.index(refresh) :] if refresh != "nothing" else (),
    )
    alive = (
        beating(open_store(context.store), context.run_id)
        if deployment.id
        else contextlib.nullcontext()
    )
    with alive, watch_sigterm():
        try:
            return run_to_verdict(checked, context, report)
        except (TerminationSignal, KeyboardInterrupt) as request:
            if cancelled := endings.stop(request, checked, context, report):
                return cancelled
            raise
        except Exception as error:
            known = describe(error)
            failed = endings.fail(known, checked, context, report)
            if type(known) is CodeFailed and known is not error:
                raise  # A defect: its traceback belongs into the run's log.
            return failed


def refuse_other_recipe(recipe: str) -> None:
    """Refuse a recipe that is not the deployment's own: it could release anything anywhere.

    Raises:
        BadRecipe: The form or an event names another one.
    """
    if deployment.id is None:
        return
    with get_client(sync_client=True) as client:
        own = client.read_deployment(deployment.id).parameters.get("recipe")
    if own and own != recipe:
        raise BadRecipe(
            f"recipe {recipe}",
            f"another recipe than the deployment's, {own}",
            "the deployment's own recipe",
            "run `burnish deploy` on the other one, and start that deployment",
        )


def later_due_run() -> str:
    """The name of a later run of this run's schedule that is due, too, as after a time without
    workers: one of them is enough. Empty if there is none, or this run has been asked for."""
    if SCHEDULED_TAG not in this_run.tags:
        return ""
    with contextlib.suppress(Exception), brief_client() as client:
        due = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id={"any_": [deployment.id]},
                tags={"all_": [SCHEDULED_TAG]},
                state={"type": {"any_": ["SCHEDULED"]}},
                expected_start_time={
                    "after_": this_run.scheduled_start_time + timedelta(seconds=1),
                    "before_": datetime.now(UTC),
                },
            ),
            limit=1,
        )
        return due[0].name if due else ""
    return ""


def run_to_verdict(recipe: Recipe, context: RunContext, report: RunReport) -> State:
    """Run until there is a verdict. The run is repeated if an artifact turns out to be damaged, if
    a pool's workers are not what they were, or if another release was revealed meanwhile; what is
    intact is reused."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return run_once(recipe, context, report)
        except DamagedArtifact as error:
            producer = PRODUCERS.get(error.kind, "")
            if attempt == ATTEMPTS or not (producer or error.kind == SOURCE_COPY):
                raise
            repeated = producer or "the copy of its source"
            report.status(f"{error.where} is damaged ({error.found}): repeating {repeated}.")
            open_store(context.store).discard(error.kind, error.digest)
            repair = (*context.repair, *filter(None, [producer]))
            context = context.model_copy(update={"repair": repair, "refresh": ()})
        except PoolChanged as error:
            if attempt == ATTEMPTS:
                raise
            report.status(f"Planning anew, for {error.found}.")
        except BaselineMoved:
            if attempt == ATTEMPTS:
                raise
            report.status("Another release was revealed meanwhile: repeating the gate.")
            context = context.model_copy(update={"refresh": ()})
        report.rows.clear()
    raise AssertionError("unreachable: the last attempt returns or raises")


def run_once(recipe: Recipe, context: RunContext, report: RunReport) -> State:
    """One pass from the sources to the end of the run."""
    channel = recipe.announce.channel
    if freeze := freeze_of(open_store(context.store), recipe.name, channel):
        # A rollback is possible on a frozen channel, and must not stay half revealed.
        finish_interrupted(recipe.name, channel, context, report)
        return hold(freeze, freeze_sentence(recipe.name, channel, freeze), recipe, context, report)
    benchmarks = check_access(recipe, context, report)
    webhooks = recipe.announce.webhooks
    set_webhooks(open_store(context.store), recipe.name, channel, webhooks)
    if proposal := earlier_proposal(context):
        ended = release(recipe, proposal.inputs, context, report, proposal)
        return remember_data(recipe, proposal.inputs.candidate, ended, context)
    finish_interrupted(recipe.name, channel, context, report)
    for entry in deliver_owed(recipe.name, channel, context):
        version = entry.release.version
        report.add_fact("delivered", f"the event of version {version}, which an earlier run owed")

    context = with_pool(recipe, context, report)
    planned = plan_training(recipe, context, report)
    report_pass_chance(recipe, planned, context, report)
    context = train_on_pool(recipe, planned, benchmarks, context, report)
    trained = train(recipe, planned, context, report)
    ended = judge(recipe, trained, benchmarks, context, report)
    return remember_data(recipe, trained, ended, context)


def judge(
    recipe: Recipe,
    trained: Trained,
    benchmarks: BenchmarkTasks | None,
    context: RunContext,
    report: RunReport,
) -> State:
    """From a trained model to the end of the run."""
    store, channel = open_store(context.store), recipe.announce.channel
    newest = deployment_log.head(store, recipe.name, channel)
    deployed = deployment_log.deployed(store, recipe.name, channel)
    digest = release_digest(trained, store)
    if held := held_back(digest, recipe, context, report):
        return held
    if deployed and deployed.release.digest == digest:
        return up_to_date(deployed, recipe, context, report)

    anchor = choose_anchor(recipe, trained, deployed, context)
    score_on_pool(recipe, trained, deployed, anchor, benchmarks, context, report)
    candidate = score_and_decide(recipe, trained, deployed, anchor, benchmarks, context, report)
    verdict = candidate.gate_result.verdict
    if verdict.outcome == "rejected":
        return endings.conclude("Rejected", verdict.summary, recipe, context, report)
    log_number = newest.number if newest else 0
    inputs = stage_inputs.release_inputs(recipe, candidate, log_number)
    return release(recipe, inputs, context, report)


def remember_data(recipe: Recipe, trained: Trained, ended: State, context: RunContext) -> State:
    """Tell the watch that these data have reached a verdict; returns the run's last state. If that
    cannot be written, it will start one more run, which finds everything done."""
    store = open_store(context.store)
    if not recipe.watch.every_minutes:
        return ended
    with contextlib.suppress(BurnishError):
        verdict = DataVerdict(
            data=seen(trained.data.digest, data_report(trained.loaded, store)),
            outcome=ended.name or "",
            run=context.run_name,
            run_id=context.run_id,
            at=deployment_log.utc_now(),
        )
        write_verdict(store, recipe.name, verdict)
    return ended


def check_access(recipe: Recipe, context: RunContext, report: RunReport) -> BenchmarkTasks | None:
    """Check that targets, LLM judge and benchmarks can be used, before anything is computed.

    Returns:
        The benchmarks; None if the recipe names none.
    """
    check_can_wait(recipe)
    check_anchor(recipe, context)
    report.status("Checking access to the targets.")
    for target in open_targets(recipe.publish):
        target.check_access()
    if recipe.announce.webhooks:
        webhook_secret()
    api_key(recipe.evaluation.llm_judge)
    benchmarks = score_inputs.benchmark_tasks(recipe)
    if benchmarks:
        report.status("Checking the benchmarks.")
        check_benchmarks(benchmarks, context)
    return benchmarks
