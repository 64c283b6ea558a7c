"""Retrain: load → examine → tokenize → finetune → evaluate → gate → publish → announce.

Start it with `burnish retrain RECIPE`, or from the Prefect UI.
A run ends as *Released*, *Up to date*, *Rejected*, or failed under the name of its cause.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

from prefect import Flow, flow
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import deployment
from prefect.runtime import flow_run as this_run
from prefect.states import Completed, Failed, State

from tasks.announce import announce, deliver
from tasks.asking import key_of
from tasks.cache import Room
from tasks.compare import CompareInputs, compare
from tasks.contracts.artifact import Comparisons, Finetuned, Loaded, Scored, Source, Tokenized
from tasks.contracts.candidate import Candidate, Trained
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import LogEntry
from tasks.data.examples import TEST, texts_by_hash
from tasks.data.sources import resolve
from tasks.errors import BaselineMoved, BurnishError, CodeFailed, DamagedArtifact
from tasks.evaluate import ScoreInputs, hardware_kind, score
from tasks.examine import ExamineInputs, examine
from tasks.finetune import FinetuneInputs, finetune
from tasks.forecast import (
    forecast_markdown,
    must_be_tight,
    remember_throughput,
    tell,
    workload,
)
from tasks.gate import GateInputs, gate
from tasks.guard import load_guard
from tasks.harness import check_harness, harness, harness_inputs, harness_markdown
from tasks.load import LoadInputs, load
from tasks.plan import make_plan, refuse_early, refuse_memory
from tasks.process import warm_up
from tasks.publish import (
    data_report,
    finish,
    missing_targets,
    open_targets,
    provenance_of,
    publish,
    publish_missing,
    restore,
)
from tasks.release import ledger
from tasks.report import (
    RunReport,
    close_report,
    data_markdown,
    loss_curve,
    markdown_table,
    release_facts,
    samples_markdown,
    verdict_markdown,
)
from tasks.store import Store, default_store, open_store
from tasks.tokenize import TokenizeInputs, token_samples, tokenize
from tasks.unpack import unpacked

Refresh = Literal[
    "nothing",
    "load",
    "unpack",
    "examine",
    "tokenize",
    "forecast",
    "finetune",
    "evaluate",
    "compare",
    "harness",
    "gate",
]
STEPS = get_args(Refresh)[1:]

# Which step is done again when something of this kind is found damaged.
MAKERS = {
    "shard": "load",
    "dataset": "load",
    "base": "unpack",
    "tokenizer": "examine",
    "shard-tokens": "tokenize",
    "tokens": "tokenize",
    "forecast": "forecast",
    "model": "finetune",
    "scores": "evaluate",
    "comparisons": "compare",
    "harness": "harness",
    "verdict": "gate",
}
ATTEMPTS = 3


def say_how_it_ended(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Bring the report up to date of a run that was cancelled, or died without a word.

    Prefect calls this in the worker where the run itself is gone, by these argument names.
    """
    recipe = Recipe.model_validate(flow_run.parameters["recipe"])
    store = open_store(recipe.store or default_store())
    newest = ledger.head(store, recipe.name, recipe.announce.channel)
    visible = "Nothing was published."
    if newest and newest.kind == "revealing":
        visible = (
            f"Version {newest.release.version} may lie at some targets; the log does not announce "
            "it yet, and the next run finishes or supersedes it."
        )
    elif newest and newest.run == flow_run.name and _since(newest, flow_run):
        visible = f"Version {newest.release.version} was released and announced by this run."
    close_report(
        flow_run.id,
        state.name or "Ended",
        f"- **Cause:** {state.message or 'the process ended without a word'}\n"
        f"- **Visible to consumers:** {visible} Deployed: {serving(recipe, store)}.\n"
        "- **Next:** press Retry on the run's page, or run "
        f"`prefect flow-run retry {flow_run.id}`. What was finished is not done again.",
    )


def _since(entry: LogEntry, flow_run: FlowRun) -> bool:
    """Whether an entry is younger than a run: an older run may have had the same name."""
    began = flow_run.start_time
    return began is not None and datetime.fromisoformat(entry.at) >= began.replace(microsecond=0)


@flow(
    name="retrain",
    validate_parameters=True,
    on_cancellation=[say_how_it_ended],
    on_crashed=[say_how_it_ended],
)
def retrain(recipe: Recipe, refresh: Refresh = "nothing") -> State:
    """Retrain a model, and release it if the gate lets it through.

    Args:
        recipe: What to train on, what to train, what it must show, and where it goes.
        refresh: Do this step and all after it anew, even if nothing changed.
    """
    recipe = recipe.settled().model_copy(update={"store": recipe.store or default_store()})
    report = RunReport(recipe.name, this_run.id or "", deployment.id is not None)
    room = Room(
        store=recipe.store,
        run_id=this_run.id or "",
        run_name=this_run.name or "",
        refresh=STEPS[STEPS.index(refresh) :] if refresh != "nothing" else (),
    )
    try:
        report.serving = serving(recipe, open_store(room.store))
        return run_to_verdict(recipe, room, report)
    except BurnishError as error:
        report.fail(error)
        return Failed(name=error.cause.capitalize(), message=f"{error}. {report.visible}")
    except Exception as error:
        report.fail(
            CodeFailed(
                f"flow {this_run.flow_name}",
                f"{type(error).__name__}: {error}",
                "a run that ends as planned, or with a cause that is known",
                "this is a defect of Burnish or of a library: report it with the traceback below",
            )
        )
        raise


def serving(recipe: Recipe, store: Store) -> str:
    """What consumers are served now, in words."""
    entry = ledger.deployed(store, recipe.name, recipe.announce.channel)
    if entry is None:
        return "nothing is deployed yet"
    return f"version {entry.release.version} on {recipe.announce.channel}"


def run_to_verdict(recipe: Recipe, room: Room, report: RunReport) -> State:
    """The whole run, gone through again when the ground moved under it: an artifact was found
    damaged, or another release was revealed. What is intact is reused each time."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return run_once(recipe, room, report)
        except DamagedArtifact as error:
            maker = MAKERS.get(error.kind)
            if attempt == ATTEMPTS or maker is None:
                raise
            report.doing(f"{error.where} is damaged ({error.found}): {maker} is done again.")
            open_store(room.store).discard(error.kind, error.digest)
            room = room.model_copy(update={"repair": (*room.repair, maker), "refresh": ()})
        except BaselineMoved:
            if attempt == ATTEMPTS:
                raise
            report.doing("Another release was revealed meanwhile: the gate runs again.")
            room = room.model_copy(update={"refresh": ()})
        report.rows.clear()
    raise AssertionError("unreachable: the last attempt returns or raises")


def run_once(recipe: Recipe, room: Room, report: RunReport) -> State:
    """One pass from the sources to the end of the run."""
    store = open_store(room.store)
    report.doing("Checking that every target can be written.")
    for target in open_targets(recipe):
        target.check_access()
    key_of(recipe.evaluation.judge)
    check_harness(recipe)

    finish_abandoned(recipe, room, report)

    trained = train(recipe, room, report)
    newest = ledger.head(store, recipe.name, recipe.announce.channel)
    deployed = ledger.deployed(store, recipe.name, recipe.announce.channel)
    if deployed and deployed.release.digest == trained.finetuned.artifact.digest:
        return up_to_date(deployed, recipe, room, report)

    report.doing("Scoring candidate and baseline on the test examples.")
    candidate = judge(recipe, trained, deployed, room, report)
    verdict = candidate.judged.verdict
    if verdict.outcome == "rejected":
        report.end("Rejected", verdict.summary)
        return Completed(name="Rejected", message=verdict.summary, data=report.text())
    return release(candidate, newest.number if newest else 0, room, report)


def finish_abandoned(recipe: Recipe, room: Room, report: RunReport) -> None:
    """Finish what an earlier run had begun to reveal: it passed its gate, and may be visible."""
    claim = ledger.head(open_store(room.store), recipe.name, recipe.announce.channel)
    if claim is None or claim.kind != "revealing":
        return
    version = claim.release.version
    report.doing(f"Finishing version {version}, which run {claim.run} had begun to reveal.")
    try:
        announce(finish(claim, room), room)
        report.fact("finished", f"version {version}, which run {claim.run} had begun to reveal")
    except BaselineMoved:
        report.doing(f"Version {version} was finished or superseded by another run.")
    except BurnishError as error:
        # A release of this run's own supersedes it; only a damaged store must be mended first.
        if isinstance(error, DamagedArtifact):
            raise
        report.fact("not finished", f"version {version} of run {claim.run}: {error}")


def train(recipe: Recipe, room: Room, report: RunReport) -> Trained:
    """From the sources to a trained model; refuses what can be refused before training."""
    report.doing("Resolving data and base model.")
    data = resolve(recipe.data.uri, "data")
    model = resolve(recipe.model.uri, "model")

    report.doing("Loading the data.")
    asked = LoadInputs(data=recipe.data, source=data, task=recipe.task)
    if load.known(asked, room) is None:
        # New data are examined, tokenized and trained on: what that needs loads meanwhile.
        warm_up()
    loaded = load(asked, room)
    report.made("load", loaded, _load_sentence(loaded, room.run_id))
    report.section("Data", data_section(loaded, recipe, room))

    model = unpacked(model, room)
    inspected = examine(
        ExamineInputs(
            model=model,
            labels=loaded.labels,
            task=recipe.task,
            chat_template=recipe.model.chat_template,
        ),
        room,
    )
    report.made("examine", inspected, f"{inspected.architecture}, {inspected.parameters:,} weights")
    refuse_early(recipe, model, loaded, inspected)
    guard = load_guard(recipe, inspected.artifact, room)
    if guard:
        rows = guard.loaded.rows["test"]
        report.made("guard set", guard.loaded, f"{rows:,} examples, for {guard.task}")

    report.doing("Tokenizing what is new.")
    tokenized = tokenize(
        TokenizeInputs(
            dataset=loaded.artifact,
            tokenizer=inspected.artifact,
            max_length=recipe.training.max_length,
            task=recipe.task,
            too_long=recipe.training.too_long,
        ),
        room,
    )
    report.made("tokenize", tokenized, _tokenize_sentence(tokenized, room.run_id))
    if recipe.task != "text-classification":
        report.section("What is learnt", samples_markdown(token_samples(tokenized, room)))
    report.warn(*inspected.warnings, *tokenized.warnings)

    plan = make_plan(recipe, tokenized.tokens)
    told = None
    if recipe.task != "text-classification":
        told = tell(recipe, model, tokenized, loaded, plan, room)
        refuse_memory(recipe, told)
        plan = make_plan(recipe, tokenized.tokens, told)
        work = workload(recipe, inspected, tokenized, loaded, plan, room)
        report.section("Forecast", forecast_markdown(told, work))
    report.section(
        "Plan",
        "\n".join(f"- {name}: {getattr(plan, name)}, for {why}" for name, why in plan.why.items()),
    )

    report.doing("Training.")
    finetuned = finetune(
        FinetuneInputs(
            model=model,
            tokenizer=inspected.artifact,
            dataset=loaded.artifact,
            tokens=tokenized.artifact,
            labels=loaded.labels,
            lora=recipe.lora,
            quantization=recipe.quantization,
            training=recipe.training,
            plan=plan,
            ship=recipe.model.ship,
            head_modules=inspected.head_modules,
            task=recipe.task,
            gguf=recipe.model.gguf,
            micro_batch_tokens=recipe.plan.micro_batch_tokens,
            most_tokens=told.micro_batch_tokens if told else 0,
            tight_memory=told is not None and must_be_tight(told),
        ),
        room,
    )
    if told:
        remember_throughput(recipe, inspected, plan, finetuned, room)
    report.made("finetune", finetuned, _finetune_sentence(finetuned))
    report.warn(*finetuned.warnings)
    report.section("Training", loss_curve(finetuned.history))
    return Trained(
        recipe=recipe,
        data=data,
        model=model,
        plan=plan,
        loaded=loaded,
        inspected=inspected,
        tokenized=tokenized,
        finetuned=finetuned,
        guard=guard,
    )


def judge(
    recipe: Recipe, trained: Trained, deployed: LogEntry | None, room: Room, report: RunReport
) -> Candidate:
    """Score candidate and baseline, and apply the gate."""
    store = open_store(room.store)
    scored = score(_candidate_inputs(recipe, trained), room)
    report.made("evaluate", scored, _metrics_sentence(scored))
    baseline = None
    if inputs := _baseline_inputs(recipe, trained, deployed, room):
        baseline = score(inputs, room)
        report.made("baseline", baseline, _metrics_sentence(baseline))

    comparisons = judge_answers(recipe, trained, scored, baseline, room, report)
    run_harness(recipe, trained, deployed, room, report)
    guarded = guard_scores(recipe, trained, deployed, room, report)
    judged = gate(
        GateInputs(
            candidate=scored,
            baseline=baseline,
            baseline_name=_baseline_name(deployed, baseline),
            baseline_entry=deployed.number if deployed else 0,
            candidate_seen=trained.loaded.artifact,
            baseline_seen=deployed.release.provenance if deployed else None,
            rules=recipe.gate,
            slices=recipe.evaluation.slices,
            task=recipe.task,
            test_digest=trained.loaded.test_digest,
            look_number=ledger.look_number(
                store,
                recipe.name,
                trained.loaded.test_digest,
                scored.model_digest,
                baseline.model_digest if baseline else "",
            ),
            **guarded,
            comparisons=comparisons,
        ),
        room,
    )
    report.made("gate", judged, judged.verdict.outcome)
    report.section("Gate", verdict_markdown(judged.verdict))
    report.fact("verdict", judged.verdict.summary)
    if recipe.evaluation.generate_tokens:
        report.section("Answers", answers_section(recipe, trained, scored, baseline, room))
    return Candidate(
        scored=scored,
        baseline=baseline,
        judged=judged,
        **{name: getattr(trained, name) for name in Trained.model_fields},
    )


def judge_answers(
    recipe: Recipe,
    trained: Trained,
    scored: Scored,
    baseline: Scored | None,
    room: Room,
    report: RunReport,
) -> Comparisons | None:
    """What the recipe's judge says of both models' answers; None without a judge or a baseline."""
    if not recipe.evaluation.judge.url or baseline is None:
        return None
    report.doing("Asking the judge which answers are better.")
    compared = compare(
        CompareInputs(
            candidate=scored.artifact,
            baseline=baseline.artifact,
            test_digest=trained.loaded.test_digest,
            dataset=trained.loaded.artifact,
            judge=recipe.evaluation.judge,
        ),
        room,
    )
    report.made("judge", compared, _judge_sentence(compared))
    return compared


def run_harness(
    recipe: Recipe, trained: Trained, deployed: LogEntry | None, room: Room, report: RunReport
) -> None:
    """Show what the recipe's harness tasks say of candidate and baseline."""
    if not recipe.evaluation.harness:
        return
    report.doing("Running the harness.")
    candidate = harness(harness_inputs(recipe, _candidate_inputs(recipe, trained)), room)
    report.made("harness", candidate, f"{len(candidate.results)} tasks")
    baseline = None
    if inputs := _baseline_inputs(recipe, trained, deployed, room):
        baseline = harness(harness_inputs(recipe, inputs), room)
        report.made("harness, baseline", baseline, f"{len(baseline.results)} tasks")
    report.section("Harness", harness_markdown(candidate, baseline))


def guard_scores(
    recipe: Recipe, trained: Trained, deployed: LogEntry | None, room: Room, report: RunReport
) -> dict:
    """Candidate and baseline on the guard set, as the gate takes them; nothing without one.

    On a first run the base model is the baseline, whatever the test examples are judged by.
    """
    if trained.guard is None:
        return {}
    report.doing("Scoring candidate and baseline on the guard set.")
    of_guard = {
        "test_digest": trained.guard.loaded.test_digest,
        "dataset": trained.guard.loaded.artifact,
        "hardware": "",
        "task": trained.guard.task,
        # Only the loss counts.
        "generate_tokens": 0,
        "must_match": "",
        "must_not_contain": (),
        "json_schema": "",
    }
    both = {
        "candidate": _candidate_inputs(recipe, trained),
        "baseline": _baseline_inputs(recipe, trained, deployed, room)
        or _untrained_inputs(recipe, trained),
    }
    found: dict = {"guard_task": trained.guard.task}
    for name, inputs in both.items():
        scored = score(inputs.model_copy(update=of_guard), room)
        report.made(f"guard set, {name}", scored, _metrics_sentence(scored))
        found[f"guard_{name}"] = scored
    return found


def release(candidate: Candidate, seen: int, room: Room, report: RunReport) -> State:
    """Publish and announce a promoted candidate."""
    report.doing("Publishing.")
    report.visible = (
        "Files of the new version may lie at some targets; the log does not announce it yet, and "
        "the next run finishes or supersedes it."
    )
    entry = announce(publish(candidate, seen, room), room)
    published = entry.release
    report.visible = f"Version {published.version} is released and announced."
    report.section("Published", "\n".join(f"- {name}: {at}" for name, at in release_facts(entry)))
    for name, value in release_facts(entry):
        report.fact(name, value)
    sentence = f"Version {published.version} is deployed on {published.channel}."
    report.end("Released", sentence)
    return Completed(name="Released", message=sentence, data=report.text())


def up_to_date(deployed: LogEntry, recipe: Recipe, room: Room, report: RunReport) -> State:
    """The candidate is what is deployed: nothing to judge, only what may still be owed."""
    if missing_targets(deployed.release, recipe):
        report.doing("Publishing the deployed release where it is missing.")
        for publication in publish_missing(deployed, recipe, room):
            report.fact("added", publication.uri)
    if deliver(deployed, room):
        report.fact("delivered", "the event that an earlier run still owed")
    verdict = deployed.event.data.verdict
    report.visible = f"Version {deployed.release.version} stays deployed."
    report.section("Gate", verdict_markdown(verdict))
    report.fact("verdict", f"of {deployed.at}: {verdict.summary}")
    for name, value in release_facts(deployed):
        report.fact(name, value)
    sentence = f"Version {deployed.release.version} is what this recipe and data give."
    report.end("Up to date", sentence)
    return Completed(name="Up to date", message=sentence, data=report.text())


def _candidate_inputs(recipe: Recipe, trained: Trained) -> ScoreInputs:
    return ScoreInputs(
        kind=recipe.model.ship,
        model=trained.finetuned.artifact,
        base=trained.model if recipe.model.ship == "adapter" else None,
        quantization=recipe.quantization if recipe.model.ship == "adapter" else "none",
        labels=(),
        **_scoring(recipe, trained),
    )


def _baseline_inputs(
    recipe: Recipe, trained: Trained, deployed: LogEntry | None, room: Room
) -> ScoreInputs | None:
    """How the baseline is scored: the deployed release from its own files, or on a first run the
    untrained base; None where the recipe's floors alone decide."""
    if deployed is None:
        if recipe.gate.first_run == "floors":
            return None
        return _untrained_inputs(recipe, trained)
    store = open_store(room.store)
    restore(deployed.release, store, recipe.publish.private)
    provenance = provenance_of(deployed.release, store)
    made_by = Recipe.model_validate(provenance["recipe"])
    adapter = made_by.model.ship == "adapter"
    return ScoreInputs(
        kind=made_by.model.ship,
        model=deployed.release.artifact,
        base=_base_of(provenance, room) if adapter else None,
        quantization=made_by.quantization if adapter else "none",
        labels=(),
        **_scoring(recipe, trained),
    )


def _base_of(provenance: dict, room: Room) -> Source:
    """The base model that a release's adapter belongs to."""
    return unpacked(resolve(provenance["sources"]["model"]["pinned"], "model"), room)


def _untrained_inputs(recipe: Recipe, trained: Trained) -> ScoreInputs:
    return ScoreInputs(
        kind="untrained",
        model=None,
        base=trained.model,
        tokenizer=trained.inspected.artifact,
        quantization="none",
        labels=trained.loaded.labels,
        **{"max_length": recipe.training.max_length, **_scoring(recipe, trained)},
    )


def _scoring(recipe: Recipe, trained: Trained) -> dict:
    return {
        "seed": recipe.training.seed,
        "test_digest": trained.loaded.test_digest,
        "dataset": trained.loaded.artifact,
        "hardware": hardware_kind() if recipe.gate.max_latency_ms else "",
        "batch_size": recipe.evaluation.batch_size,
        "device": trained.plan.device,
        "task": recipe.task,
        **({} if recipe.task == "text-classification" else _language_scoring(recipe)),
    }


def _language_scoring(recipe: Recipe) -> dict:
    asked = recipe.evaluation
    return {
        "max_length": recipe.training.max_length,
        "generate_tokens": asked.generate_tokens,
        "must_match": asked.must_match,
        "must_not_contain": asked.must_not_contain,
        "json_schema": asked.json_schema,
        "beta": recipe.training.beta,
    }


def _baseline_name(deployed: LogEntry | None, baseline: Scored | None) -> str:
    if deployed:
        return deployed.release.version
    return "untrained base" if baseline else "none"


def answers_section(
    recipe: Recipe, trained: Trained, scored: Scored, baseline: Scored | None, room: Room
) -> str:
    """A few answers to test questions, the baseline's beside the candidate's."""
    import pyarrow.parquet as pq

    from tasks.judging.samples import sample_answers

    store = open_store(room.store)

    def answers(of: Scored):
        return pq.read_table(store.file(of.artifact, "scores.parquet"))

    samples = sample_answers(
        answers(scored),
        answers(baseline) if baseline else None,
        texts_by_hash(room, trained.loaded.artifact, TEST),
        metric=recipe.gate.metric,
    )
    return markdown_table(("question", "reference", "baseline", "candidate"), samples)


def data_section(loaded: Loaded, recipe: Recipe, room: Room) -> str:
    """The data report, with what changed since the deployed release's data."""
    store = open_store(room.store)
    deployed = ledger.deployed(store, recipe.name, recipe.announce.channel)
    before = provenance_of(deployed.release, store)["data_report"] if deployed else None
    return data_markdown(data_report(loaded, store), before)


def _load_sentence(loaded: Loaded, run_id: str) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in loaded.rows.items())
    return f"{rows}; {_shards(loaded, 'read', run_id)}"


def _tokenize_sentence(tokenized: Tokenized, run_id: str) -> str:
    learnt = f", {tokenized.learnt:,} of them learnt" if tokenized.learnt else ""
    left_out = f", {tokenized.left_out:,} left out" if tokenized.left_out else ""
    return (
        f"{tokenized.tokens:,} tokens{learnt}, {tokenized.truncated:,} texts cut{left_out}; "
        f"{_shards(tokenized, 'tokenized', run_id)}"
    )


def _shards(result: Loaded | Tokenized, verb: str, run_id: str) -> str:
    new = result.new_shards if result.made and result.made.run_id == run_id else 0
    return f"{new} of {result.shards} shards {verb} anew"


def _finetune_sentence(finetuned: Finetuned) -> str:
    metrics = finetuned.metrics
    shown = "accuracy" if "f1" in metrics else "loss"
    return (
        f"{finetuned.steps} steps, validation {shown} {metrics[shown]:.4f}, "
        f"best epoch {finetuned.best_epoch:g}"
    )


def _judge_sentence(compared: Comparisons) -> str:
    return (
        f"{compared.judge}: preferred {compared.preferred:.4f}, {compared.wins} wins, "
        f"{compared.ties} ties ({compared.turned} turned with the order, {compared.unreadable} "
        f"without a verdict), {compared.losses} losses"
    )


def _metrics_sentence(scored: Scored) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scored.metrics.items())
