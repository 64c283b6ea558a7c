"""How often the gate errs, and how often it sees what is there: `python -m` this module.

Outcomes of two different models are drawn from the true multinomial of (both right, gained, lost,
both wrong), 1,000 times per condition. Claims on accuracy call the functions that `decide`
calls, `exact_tests.superiority_p` and `noninferiority_p`; the first trials of every
condition also go through `decide` itself, which must agree. Slices go through `decide` in every
trial. Where the sum over all outcomes is affordable, the exact rate stands beside the simulated
one. Macro F1 is compared by `bootstrap_f1.bootstrap_difference`.

Scores of language models are drawn example by example and compared by `bootstrap_mean.compare`,
as `decide` does, with fewer resamples; the first trials go through `decide`, too, whose p-value
must be near.
Losses are weighted by log-normal numbers of tokens.

Over 400 lines because all conditions share their draws, their way through `decide`, and one table.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import stats

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import Verdict
from tasks.gate import bootstrap_f1, bootstrap_mean, decide, exact_tests
from tasks.gate import evidence as evidence_
from tasks.runtime.code_digest import code_digest

SEED = 20_240
TRIALS = 1_000
THROUGH_DECIDE = 20
ALPHA = 0.05
# 5% and twice its standard error in 1,000 trials, less a little.
LEVEL_GOAL = 0.061
ACCURACY = 0.8
DISCORDANCES = (0.05, 0.1, 0.2, 0.25)
SIZES = (300, 2000)
SCORE_SIZES = (150, 300, 1000)
SCORE_RESAMPLES = 499
SCORES_THROUGH_DECIDE = 3
# Between p-values of 499 and of 9,999 resamples: four standard errors.
NEAR = 0.09
RESULTS = Path(__file__).parent / "results"
Test = Callable[[int, int], float]
Draw = Callable[[np.random.Generator, int, float], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Result:
    """One condition.

    Attributes:
        check: What was asked.
        examples, discordance, difference: The truth that was drawn from; scores have no
            discordance.
        margin: Of the rule, where it has one.
        trials, seed: So many, from this seed.
        through_decide: Trials that went through `decide`.
        rate: Share of trials in which the event happened (promoted; for slices: vetoed).
        exact: The same by summing over all outcomes; None where it was not computed.
        goal: What the rate must be.
        reached: Whether it is.
    """

    check: str
    examples: int
    discordance: float | None
    difference: float
    margin: float | None
    trials: int
    seed: int
    through_decide: int
    rate: float
    exact: float | None
    goal: str
    reached: bool


def main() -> None:
    """Run every condition, print it, and write JSON and a table after each kind of them; go on
    from those that the same code has finished."""
    started, path = time.monotonic(), RESULTS / "gate_simulation.json"
    code = code_digest(("tasks.gate.decide",))
    known = json.loads(path.read_text()) if path.exists() else {}
    finished = known["finished"] if known.get("code") == code else {}
    for check in (equal, worse, gains, slices, macro_f1, score_claims, score_slices):
        if check.__name__ in finished:
            continue
        results = check()
        finished[check.__name__] = [asdict(result) for result in results]
        for result in results:
            print(f"{time.monotonic() - started:6.0f} s  {_row(result)}", flush=True)
        _write(path, finished, code)


def _write(path: Path, finished: dict[str, list[dict]], code: str) -> None:
    results = [Result(**each) for part in finished.values() for each in part]
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": SEED,
        "trials": TRIALS,
        "alpha": ALPHA,
        "baseline_accuracy": ACCURACY,
        "path": __doc__,
        "skipped": [],
        "skipped_why": "A condition would be impossible where the margin exceeds the discordance; "
        "none does. Where they are equal (5% and 0.05) no pair is gained and all are lost.",
        "all_reached": all(result.reached for result in results),
        "code": code,
        "finished": finished,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(_table(report, results))


# Claims on accuracy


def equal() -> list[Result]:
    """Equally good models, claimed to be better."""
    return [
        _claim("equal models pass 'better'", n, discordance, 0.0, None, f"<= {LEVEL_GOAL}")
        for n in SIZES
        for discordance in DISCORDANCES
    ]


def worse() -> list[Result]:
    """A model that is worse by the margin, claimed not to be."""
    return [
        _claim("worse by the margin passes", n, discordance, -margin, margin, f"<= {LEVEL_GOAL}")
        for n in SIZES
        for margin in (0.02, 0.05)
        for discordance in DISCORDANCES
        if margin <= discordance
    ]


def gains() -> list[Result]:
    """A model that is truly better, claimed to be."""
    return [
        _claim("a true gain passes 'better'", 2000, discordance, gain, None, ">= 0.8")
        for discordance, gain in ((0.1, 0.02), (0.25, 0.03))
    ]


def _claim(
    check: str, n: int, discordance: float, difference: float, margin: float | None, goal: str
) -> Result:
    seed = _seed(check, n, discordance, margin)
    draws = _draw(np.random.default_rng(seed), n, discordance, difference, TRIALS)
    rules = GateRecipe(claim="better") if margin is None else GateRecipe(margin=margin)
    test = _test(n, margin)
    passed = [test(int(gained), int(lost)) <= ALPHA for _, gained, lost, _ in draws]
    for counts, by_function in zip(draws[:THROUGH_DECIDE], passed, strict=False):
        decided = _decide(_evidence(counts), rules, ()).outcome == "promoted"
        if decided != by_function:
            raise RuntimeError(f"decide and {check} disagree on {counts.tolist()}")
    exact = _exact(test, n, discordance, difference) if n <= 300 else None
    rate = float(np.mean(passed))
    return Result(
        check,
        n,
        discordance,
        difference,
        margin,
        TRIALS,
        seed,
        THROUGH_DECIDE,
        rate,
        exact,
        goal,
        _reached(rate, goal),
    )


@functools.cache
def _test(n: int, margin: float | None) -> Test:
    if margin is None:
        return functools.cache(lambda gained, lost: exact_tests.superiority_p(gained, lost, n))
    return functools.cache(
        lambda gained, lost: exact_tests.noninferiority_p(gained, lost, n, margin)
    )


def _exact(test: Test, n: int, discordance: float, difference: float) -> float:
    """P(test <= alpha), summed over discordant pairs; more gains among them are more extreme."""
    total, share = 0.0, (discordance + difference) / (2 * discordance)
    for pairs in range(n + 1):
        weight = stats.binom.pmf(pairs, n, discordance)
        if weight < 1e-10:
            continue
        low, high = 0, pairs + 1
        while low < high:
            middle = (low + high) // 2
            if test(middle, pairs - middle) <= ALPHA:
                high = middle
            else:
                low = middle + 1
        total += weight * stats.binom.sf(low - 1, pairs, share)
    return round(float(total), 5)


# Slices


def slices() -> list[Result]:
    """Five slices of 200 examples each, in none of which the candidate is truly worse."""
    check, goal, found = "five harmless slices veto", "<= 0.05", []
    names = np.repeat([f"g{i}" for i in range(5)], 200)
    for discordance in DISCORDANCES:
        seed = _seed(check, 1000, discordance, None)
        draws = _draw(np.random.default_rng(seed), 200, discordance, 0.0, TRIALS * 5)
        vetoed = []
        for counts in draws.reshape(TRIALS, 5, 4):
            verdict = _decide(_evidence(*counts, group=names), GateRecipe(), ("group",))
            harms = [rule for rule in verdict.rules if rule.rule == "no harm"]
            vetoed.append(any(rule.vetoes and not rule.passed for rule in harms))
        rate = float(np.mean(vetoed))
        found.append(
            Result(
                check,
                1000,
                discordance,
                0.0,
                None,
                TRIALS,
                seed,
                TRIALS,
                rate,
                None,
                goal,
                _reached(rate, goal),
            )
        )
    return found


# Macro F1


def macro_f1() -> list[Result]:
    """Macro F1 of four balanced labels, by the bootstrap with 999 resamples."""
    return [
        _bootstrap("macro F1: " + check, 300, discordance, -margin, margin)
        for check, margin in (("equal models pass 'better'", 0.0), ("worse by the margin", 0.02))
        for discordance in DISCORDANCES
    ]


def _bootstrap(check: str, n: int, discordance: float, difference: float, margin: float) -> Result:
    seed = _seed(check, n, discordance, margin)
    random = np.random.default_rng(seed)
    labels, passed, goal = np.array(list("abcd")), [], f"<= {LEVEL_GOAL}"
    for counts in _draw(random, n, discordance, difference, TRIALS):
        ours, theirs = _outcomes(counts)
        truth = random.integers(0, 4, n)
        answers = [
            labels[np.where(right, truth, (truth + random.integers(1, 4, n)) % 4)]
            for right in (ours, theirs)
        ]
        comparison = bootstrap_f1.bootstrap_difference(
            labels[truth], *answers, "f1", null=-margin, resamples=999
        )
        passed.append(comparison.p_value <= ALPHA)
    rate = float(np.mean(passed))
    return Result(
        check,
        n,
        discordance,
        difference,
        margin or None,
        TRIALS,
        seed,
        0,
        rate,
        None,
        goal,
        _reached(rate, goal),
    )


# Scores of language models


def score_claims() -> list[Result]:
    """Equal models, models that are worse by the margin, and models with a visible gain."""
    found = []
    for name, draw in DRAWS.items():
        # No test can hold its level for all distributions: of the most skewed one, what it costs.
        goal = "<= 0.1" if name == "seldom very much worse" else f"<= {LEVEL_GOAL}"
        for n in SCORE_SIZES:
            found.append(_score(f"{name}: equal models pass 'better'", draw, n, 0.0, None, goal))
        found.append(_score(f"{name}: worse by the margin passes", draw, 300, -0.05, 0.05, goal))
        found.append(_score(f"{name}: a gain of 0.15 passes", draw, 1000, 0.15, None, ">= 0.8"))
    return found


def score_slices() -> list[Result]:
    """Five slices of 200 losses each, in none of which the candidate is truly worse."""
    found = []
    for name, draw in DRAWS.items():
        if name == "seldom very much worse":
            continue
        check = f"{name}: five harmless slices veto"
        seed = _seed(check, 1000, 0, None)
        random, vetoed = np.random.default_rng(seed), []
        for _ in range(TRIALS):
            parts = [draw(random, 200, 0.0) for _ in range(5)]
            harms = [
                bootstrap_mean.compare(-gains, weights, resamples=SCORE_RESAMPLES).p_value
                for gains, weights in parts
            ]
            vetoed.append(bool((exact_tests.holm(harms) <= ALPHA).any()))
        rate = float(np.mean(vetoed))
        goal = f"<= {LEVEL_GOAL}"
        reached = _reached(rate, goal)
        found.append(
            Result(check, 1000, None, 0.0, None, TRIALS, seed, 0, rate, None, goal, reached)
        )
    return found


def _score(
    check: str, draw: Draw, n: int, difference: float, margin: float | None, goal: str
) -> Result:
    seed = _seed(check, n, 0, margin)
    random, passed = np.random.default_rng(seed), []
    for trial in range(TRIALS):
        gains, weights = draw(random, n, difference)
        p_value = bootstrap_mean.compare(
            gains, weights, null=-(margin or 0), resamples=SCORE_RESAMPLES
        ).p_value
        passed.append(p_value <= ALPHA)
        if trial < SCORES_THROUGH_DECIDE:
            decided = _decided_p_value(gains, weights, margin)
            if abs(decided - p_value) > NEAR:
                raise RuntimeError(f"decide and {check} disagree: {decided} and {p_value}")
    rate = float(np.mean(passed))
    reached = _reached(rate, goal)
    through = SCORES_THROUGH_DECIDE
    return Result(
        check, n, None, difference, margin, TRIALS, seed, through, rate, None, goal, reached
    )


def _decided_p_value(gains: np.ndarray, weights: np.ndarray, margin: float | None) -> float:
    """The p-value that `decide` gives a claim on losses."""
    rows, tables = np.arange(len(gains)), []
    for losses in (50 - gains, np.full(len(gains), 50.0)):
        columns = {
            "hash_hi": rows.astype(np.uint64),
            "hash_lo": rows.astype(np.uint64),
            "label": np.full(len(rows), ""),
            "loss": losses,
            "tokens": weights.astype(np.int32),
            "length": rows.astype(np.int32),
        }
        tables.append(pa.table({name: pa.array(each) for name, each in columns.items()}))
    better = GateRecipe(metric="loss", claim="better")
    rules = GateRecipe(metric="loss", margin=margin) if margin else better
    evidence = evidence_.Evidence(
        candidate=tables[0],
        baseline=tables[1],
        candidate_labels=(),
        baseline_labels=(),
        candidate_seen=None,
        baseline_seen=None,
        latency_ms=None,
        size_bytes=1,
        task="completion",
    )
    (claim,) = [
        rule for rule in _decide(evidence, rules, ()).rules if rule.rule in ("better", "not worse")
    ]
    return claim.p_value


def _tokens(random: np.random.Generator, n: int) -> np.ndarray:
    return np.maximum(1, np.round(random.lognormal(3, 0.6, n)))


def _two_losses(random: np.random.Generator, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Two models' losses: log-normal, much alike, and neither better."""
    common = random.lognormal(0.5, 0.5, n)
    ours, theirs = (common * random.lognormal(0, 0.3, n) for _ in range(2))
    return theirs - ours + gain, _tokens(random, n)


def _seldom_worse(sigma: float, size: float) -> Draw:
    """Mostly a little better and seldom much worse: log-normal differences."""

    def draw(random: np.random.Generator, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
        excess = random.lognormal(0, sigma, n) - math.exp(sigma**2 / 2)
        return gain - size * excess, _tokens(random, n)

    return draw


DRAWS: dict[str, Draw] = {
    "two log-normal losses": _two_losses,
    "seldom much worse": _seldom_worse(0.5, 1.0),
    "seldom very much worse": _seldom_worse(1.0, 0.3),
}


# Drawing and judging


def _seed(check: str, n: int, discordance: float, margin: float | None) -> int:
    words = [SEED, *check.encode(), n, round(discordance * 1000), round((margin or 0) * 1000)]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _draw(
    random: np.random.Generator, n: int, discordance: float, difference: float, trials: int
) -> np.ndarray:
    """Counts of (both right, gained, lost, both wrong), shape (trials, 4)."""
    gained, lost = (discordance + difference) / 2, (discordance - difference) / 2
    shares = [ACCURACY - lost, gained, lost, 1 - ACCURACY - gained]
    return random.multinomial(n, np.maximum(shares, 0.0), size=trials)


def _outcomes(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.repeat([True, True, False, False], counts),
        np.repeat([True, False, True, False], counts),
    )


def _evidence(*counts: np.ndarray, group: np.ndarray | None = None) -> evidence_.Evidence:
    ours, theirs = (np.concatenate(part) for part in zip(*map(_outcomes, counts), strict=True))
    return evidence_.Evidence(
        candidate=_answers(ours, group),
        baseline=_answers(theirs, None),
        candidate_labels=("a", "b"),
        baseline_labels=("a", "b"),
        candidate_seen=None,
        baseline_seen=None,
        latency_ms=None,
        size_bytes=1,
    )


def _answers(right: np.ndarray, group: np.ndarray | None) -> pa.Table:
    rows = np.arange(len(right))
    columns = {
        "hash_hi": rows.astype(np.uint64),
        "hash_lo": rows.astype(np.uint64),
        "label": np.full(len(right), "a"),
        "predicted": np.where(right, "a", "b"),
        "correct": right,
        "loss": np.where(right, 0.1, 2.0),
        "length": rows.astype(np.int32),
    }
    if group is not None:
        columns["group"] = group
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _decide(evidence: evidence_.Evidence, rules: GateRecipe, slices: tuple[str, ...]) -> Verdict:
    return decide.decide(
        evidence,
        rules,
        slices,
        candidate_digest="c",
        baseline="simulated",
        baseline_digest="b",
        baseline_entry=1,
        test_digest="t",
        look_number=1,
    )


def _reached(rate: float, goal: str) -> bool:
    relation, bound = goal.split()
    return rate <= float(bound) if relation == "<=" else rate >= float(bound)


# The table


def _row(result: Result) -> str:
    cells = (
        result.check,
        result.examples,
        "" if result.discordance is None else f"{result.discordance:.0%}",
        f"{result.difference:+.2f}" if result.difference else "0",
        "" if result.margin is None else result.margin,
        f"{result.rate:.3f} ± {1.96 * math.sqrt(result.rate * (1 - result.rate) / TRIALS):.3f}",
        "" if result.exact is None else f"{result.exact:.3f}",
        result.goal,
        "yes" if result.reached else "NO",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _table(report: dict, results: list[Result]) -> str:
    head = "| event | n | discordance | true difference | margin | rate | exact | goal | reached |"
    return "\n".join(
        [
            "# How often the gate errs",
            "",
            f"{TRIALS} trials a condition, seed {SEED}, one-sided alpha {ALPHA}, "
            f"{report['date']}. Made by `python -m tests.benchmarks.gate_simulation`, which says "
            "what was called.",
            "",
            head,
            "|---" * 9 + "|",
            *map(_row, results),
            "",
            report["skipped_why"],
            "",
        ]
    )


if __name__ == "__main__":
    main()
