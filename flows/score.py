"""The second half of a run: candidate and baseline are scored, and the gate decides."""

from __future__ import annotations

from flows import score_inputs, stage_inputs
from flows.anchor import AnchorChoice
from tasks.contracts.candidate import Candidate, Planned, Trained
from tasks.contracts.recipe import Recipe
from tasks.contracts.release import LogEntry
from tasks.contracts.results import Benchmarked, Comparisons, Scored
from tasks.evaluate.benchmark_step import BenchmarkTasks, run_benchmarks
from tasks.evaluate.llm_judge_step import ask_llm_judge
from tasks.evaluate.step import ScoreInputs, score
from tasks.gate.step import AnchorInputs, gate
from tasks.load.dataset import texts_by_hash
from tasks.load.splits import TEST
from tasks.release.looks import count_look
from tasks.release.provenance import seen_inputs
from tasks.report.markdown import benchmarks_markdown, markdown_table, rules_markdown
from tasks.report.run_report import RunReport, Section
from tasks.report.summaries import llm_judge_sentence, metrics_sentence
from tasks.runtime.context import RunContext
from tasks.storage.store import Store, open_store


def score_and_decide(
    recipe: Recipe,
    trained: Trained,
    deployed: LogEntry | None,
    anchor: AnchorChoice | None,
    benchmarks: BenchmarkTasks | None,
    context: RunContext,
    report: RunReport,
) -> Candidate:
    """Score candidate, baseline and anchor, and apply the gate."""
    scoring = score_inputs.candidate_score_inputs(recipe, trained, trained.finetuned)
    baseline_scoring = baseline_score_inputs(recipe, trained, deployed, context)
    scored, baseline = score_both(scoring, baseline_scoring, context, report)
    anchored = score_anchor(anchor, context, report)
    comparisons = compare_answers(recipe, trained, scored, baseline, context, report)
    benchmarked, benchmark_baseline = run_benchmarks_for_both(
        recipe, benchmarks, scoring, baseline_scoring, context, report
    )
    guard_scored, guard_baseline = score_guard_set(
        recipe, trained, scoring, baseline_scoring, context, report
    )
    store = open_store(context.store)
    look = count_look(
        store,
        recipe.name,
        trained.loaded.test_digest,
        test_rows(scored, store),
        scored,
        baseline.model_digest if baseline else "",
    )
    inputs = stage_inputs.gate_inputs(
        recipe,
        trained,
        deployed,
        baseline_seen=seen_inputs(deployed.release, store) if deployed else None,
        candidate=scored,
        baseline=baseline,
        guard_candidate=guard_scored,
        guard_baseline=guard_baseline,
        comparisons=comparisons,
        look=look,
        anchor=anchored,
    )
    decided = gate(inputs, context)
    report.add_step("gate", decided, decided.verdict.outcome)
    report.section(Section.GATE, rules_markdown(decided.verdict))
    report.add_fact("verdict", decided.verdict.summary)
    if recipe.evaluation.generate_tokens:
        answers = answers_section(recipe, trained, scored, baseline, context)
        report.section(Section.ANSWERS, answers)
    return Candidate(
        **dict(trained),
        scored=scored,
        baseline=baseline,
        gate_result=decided,
        guard_scored=guard_scored,
        guard_baseline=guard_baseline,
        compared=comparisons,
        benchmarks=benchmarked,
        benchmark_baseline=benchmark_baseline,
        benchmark_folder=benchmarks.folder if benchmarks else None,
    )


def score_both(
    scoring: ScoreInputs,
    baseline_scoring: ScoreInputs | None,
    context: RunContext,
    report: RunReport,
) -> tuple[Scored, Scored | None]:
    """Scores of candidate and baseline on the test examples; None without a baseline."""
    report.status("Scoring candidate and baseline on the test examples.")
    scored = score(scoring, context)
    report.add_step("evaluate", scored, metrics_sentence(scored))
    if baseline_scoring is None:
        return scored, None
    baseline = score(baseline_scoring, context)
    report.add_step("baseline", baseline, metrics_sentence(baseline))
    return scored, baseline


def score_anchor(
    anchor: AnchorChoice | None, context: RunContext, report: RunReport
) -> AnchorInputs | None:
    """The anchor's scores on the test examples; the baseline's if it is the baseline."""
    if anchor is None:
        return None
    scored = None
    if anchor.scoring:
        scored = score(anchor.scoring, context)
        report.add_step(f"anchor {anchor.state.version}", scored, metrics_sentence(scored))
    return AnchorInputs(
        state=anchor.state,
        scored=scored,
        seen=anchor.seen,
        metric=anchor.metric,
        problem=anchor.problem,
        fixed=anchor.fixed,
    )


def test_rows(scored: Scored, store: Store):
    """The hashes of the inputs that a model was scored on, uint64, shape (n, 2)."""
    import pyarrow.parquet as pq

    from tasks.evaluate.score_table import keys_of

    columns = ["hash_hi", "hash_lo"]
    return keys_of(pq.read_table(store.file(scored.artifact, "scores.parquet"), columns=columns))


def baseline_score_inputs(
    recipe: Recipe, planned: Planned, deployed: LogEntry | None, context: RunContext
) -> ScoreInputs | None:
    """How the baseline is scored: the deployed release from its own files, or on a first run the
    untrained base; None if the recipe uses floors only."""
    if deployed is None:
        if recipe.gate.first_run == "floors":
            return None
        return score_inputs.untrained_score_inputs(recipe, planned)
    return score_inputs.restored_score_inputs(recipe, planned, deployed.release, context)


def compare_answers(
    recipe: Recipe,
    trained: Trained,
    scored: Scored,
    baseline: Scored | None,
    context: RunContext,
    report: RunReport,
) -> Comparisons | None:
    """The LLM judge's comparison of both models' answers; None without a judge or a baseline."""
    inputs = score_inputs.llm_judge_inputs(recipe, trained, scored, baseline)
    if inputs is None:
        return None
    report.status("Asking the LLM judge which answers are better.")
    compared = ask_llm_judge(inputs, context)
    report.add_step("llm_judge", compared, llm_judge_sentence(compared))
    return compared


def run_benchmarks_for_both(
    recipe: Recipe,
    tasks: BenchmarkTasks | None,
    scoring: ScoreInputs,
    baseline_scoring: ScoreInputs | None,
    context: RunContext,
    report: RunReport,
) -> tuple[Benchmarked | None, Benchmarked | None]:
    """Benchmark results of candidate and baseline, for the report; None where there are none."""
    if tasks is None:
        return None, None
    report.status("Running the benchmarks.")
    candidate = run_benchmarks(score_inputs.benchmark_inputs(recipe, tasks, scoring), context)
    report.add_step("benchmarks", candidate, f"{len(candidate.results)} tasks")
    baseline = None
    if baseline_scoring:
        inputs = score_inputs.benchmark_inputs(recipe, tasks, baseline_scoring)
        baseline = run_benchmarks(inputs, context)
        report.add_step("benchmarks, baseline", baseline, f"{len(baseline.results)} tasks")
    report.section(Section.BENCHMARKS, benchmarks_markdown(candidate, baseline))
    return candidate, baseline


def score_guard_set(
    recipe: Recipe,
    trained: Trained,
    scoring: ScoreInputs,
    baseline_scoring: ScoreInputs | None,
    context: RunContext,
    report: RunReport,
) -> tuple[Scored | None, Scored | None]:
    """Scores of candidate and baseline on the guard set; None without one.

    On a first run the untrained base is the guard set's baseline, even if the recipe's floors alone
    decide otherwise.
    """
    if trained.guard is None:
        return None, None
    report.status("Scoring candidate and baseline on the guard set.")
    baseline_scoring = baseline_scoring or score_inputs.untrained_score_inputs(recipe, trained)
    results = []
    for name, inputs in (("candidate", scoring), ("baseline", baseline_scoring)):
        scored = score(score_inputs.guard_score_inputs(inputs, trained.guard), context)
        report.add_step(f"guard set, {name}", scored, metrics_sentence(scored))
        results.append(scored)
    return results[0], results[1]


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
