"""The second half of a run: candidate and baseline are scored, and the gate decides."""

from __future__ import annotations

from tasks.base_model.gguf_step import trainable_source
from tasks.contracts.artifacts import Source
from tasks.contracts.candidate import Candidate, Trained
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import LogEntry
from tasks.contracts.results import Comparisons, Scored
from tasks.evaluate.benchmark_step import benchmark_inputs, run_benchmarks
from tasks.evaluate.llm_judge_step import LlmJudgeInputs, ask_llm_judge
from tasks.evaluate.step import ScoreInputs, hardware_kind, score
from tasks.gate.step import GateInputs, gate
from tasks.load.dataset import texts_by_hash
from tasks.load.splits import TEST
from tasks.release import deployment_log
from tasks.release.provenance import provenance_of
from tasks.release.publish import restore
from tasks.report.markdown import benchmarks_markdown, markdown_table, verdict_markdown
from tasks.report.run_report import RunReport
from tasks.report.summaries import llm_judge_sentence, metrics_sentence
from tasks.runtime.context import RunContext
from tasks.storage.sources import resolve
from tasks.storage.store import open_store


def score_and_decide(
    recipe: Recipe,
    trained: Trained,
    deployed: LogEntry | None,
    context: RunContext,
    report: RunReport,
) -> Candidate:
    """Score candidate and baseline, and apply the gate."""
    store = open_store(context.store)
    ours = _candidate_inputs(recipe, trained)
    theirs = _baseline_inputs(recipe, trained, deployed, context)
    scored = score(ours, context)
    report.add_step("evaluate", scored, metrics_sentence(scored))
    baseline = None
    if theirs:
        baseline = score(theirs, context)
        report.add_step("baseline", baseline, metrics_sentence(baseline))

    comparisons = compare_answers(recipe, trained, scored, baseline, context, report)
    benchmarked = run_benchmarks_for_both(recipe, ours, theirs, context, report)
    # On a first run the base model is the guard set's baseline, whatever the test examples are
    # judged by.
    guarded = guard_scores(
        trained, ours, theirs or _untrained_inputs(recipe, trained), context, report
    )
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
            look_number=deployment_log.look_number(
                store,
                recipe.name,
                trained.loaded.test_digest,
                scored.model_digest,
                baseline.model_digest if baseline else "",
            ),
            **guarded,
            comparisons=comparisons,
        ),
        context,
    )
    report.add_step("gate", judged, judged.verdict.outcome)
    report.section("Gate", verdict_markdown(judged.verdict))
    report.add_fact("verdict", judged.verdict.summary)
    if recipe.evaluation.generate_tokens:
        report.section("Answers", answers_section(recipe, trained, scored, baseline, context))
    return Candidate(
        scored=scored,
        baseline=baseline,
        gate_result=judged,
        guard_scored=guarded.get("guard_candidate"),
        guard_baseline=guarded.get("guard_baseline"),
        compared=comparisons,
        **benchmarked,
        **{name: getattr(trained, name) for name in Trained.model_fields},
    )


def compare_answers(
    recipe: Recipe,
    trained: Trained,
    scored: Scored,
    baseline: Scored | None,
    context: RunContext,
    report: RunReport,
) -> Comparisons | None:
    """What the recipe's judge says of both models' answers; None without a judge or a baseline."""
    if not recipe.evaluation.llm_judge.url or baseline is None:
        return None
    report.status("Asking the judge which answers are better.")
    compared = ask_llm_judge(
        LlmJudgeInputs(
            candidate=scored.artifact,
            baseline=baseline.artifact,
            test_digest=trained.loaded.test_digest,
            dataset=trained.loaded.artifact,
            llm_judge=recipe.evaluation.llm_judge,
        ),
        context,
    )
    report.add_step("llm_judge", compared, llm_judge_sentence(compared))
    return compared


def run_benchmarks_for_both(
    recipe: Recipe,
    ours: ScoreInputs,
    theirs: ScoreInputs | None,
    context: RunContext,
    report: RunReport,
) -> dict:
    """Show what the recipe's harness tasks say of candidate and baseline; returns both, and where
    the tasks came from, as a candidate keeps them; nothing without tasks."""
    if not recipe.evaluation.benchmarks:
        return {}
    report.status("Running the harness.")
    inputs = benchmark_inputs(recipe, ours)
    candidate = run_benchmarks(inputs, context)
    report.add_step("benchmarks", candidate, f"{len(candidate.results)} tasks")
    baseline = None
    if theirs:
        baseline = run_benchmarks(benchmark_inputs(recipe, theirs), context)
        report.add_step("benchmarks, baseline", baseline, f"{len(baseline.results)} tasks")
    report.section("Harness", benchmarks_markdown(candidate, baseline))
    return {
        "benchmarks": candidate,
        "benchmark_baseline": baseline,
        "benchmark_folder": inputs.folder,
    }


def guard_scores(
    trained: Trained, ours: ScoreInputs, theirs: ScoreInputs, context: RunContext, report: RunReport
) -> dict:
    """Candidate and baseline on the guard set, as the gate takes them; nothing without one."""
    if trained.guard is None:
        return {}
    report.status("Scoring candidate and baseline on the guard set.")
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
    found: dict = {"guard_task": trained.guard.task}
    for name, inputs in (("candidate", ours), ("baseline", theirs)):
        scored = score(inputs.model_copy(update=of_guard), context)
        report.add_step(f"guard set, {name}", scored, metrics_sentence(scored))
        found[f"guard_{name}"] = scored
    return found


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
    recipe: Recipe, trained: Trained, deployed: LogEntry | None, context: RunContext
) -> ScoreInputs | None:
    """How the baseline is scored: the deployed release from its own files, or on a first run the
    untrained base; None where the recipe's floors alone decide."""
    if deployed is None:
        if recipe.gate.first_run == "floors":
            return None
        return _untrained_inputs(recipe, trained)
    store = open_store(context.store)
    restore(deployed.release, store, recipe.publish.private)
    provenance = provenance_of(deployed.release, store)
    made_by = Recipe.model_validate(provenance["recipe"])
    adapter = made_by.model.ship == "adapter"
    return ScoreInputs(
        kind=made_by.model.ship,
        model=deployed.release.artifact,
        base=_base_of(provenance, context) if adapter else None,
        quantization=made_by.quantization if adapter else "none",
        labels=(),
        **_scoring(recipe, trained),
    )


def _base_of(provenance: dict, context: RunContext) -> Source:
    """The base model that a release's adapter belongs to."""
    return trainable_source(resolve(provenance["sources"]["model"]["pinned"], "model"), context)


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
    recipe: Recipe, trained: Trained, scored: Scored, baseline: Scored | None, context: RunContext
) -> str:
    """A few answers to test questions, the baseline's beside the candidate's."""
    import pyarrow.parquet as pq

    from tasks.evaluate.answer_samples import sample_answers

    store = open_store(context.store)

    def answers(of: Scored):
        return pq.read_table(store.file(of.artifact, "scores.parquet"))

    samples = sample_answers(
        answers(scored),
        answers(baseline) if baseline else None,
        texts_by_hash(context, trained.loaded.artifact, TEST),
        metric=recipe.gate.metric,
    )
    return markdown_table(("question", "reference", "baseline", "candidate"), samples)
