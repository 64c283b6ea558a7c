"""What the gate must withstand over many retrains, with rows that belong together, and with rare
ruin: `python -m` this module, or `make gate-simulation`.

Each condition draws outcomes from a known truth, with a seed that was fixed before the first run,
and calls what `decide` calls. Results are written after each condition, and a run goes on from
those that the same code has made. A rate that must be at most 5% is reached if its 95% interval
(Clopper and Pearson 1934, Biometrika 26:404) begins at or below 5%.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from tasks.contracts.task_tables import LEAST_SUPPORT
from tasks.gate import bootstrap_f1, bootstrap_mean
from tasks.runtime.code_digest import code_digest
from tests.benchmarks import gate_over_time as over_time
from tests.benchmarks.gate_over_time import ALPHA, fewest_gains, passes

SEED = 14_000
TRIALS = 2_000
RUNS = 1_000
RESAMPLES = 499
_RELATIVE = ">= 0.8 of the row above"
RESULTS = Path(__file__).parent / "results"
Draw = Callable[[np.random.Generator], float]


@dataclass(frozen=True)
class Outcome:
    """One condition's result.

    Attributes:
        situation: What was drawn.
        trials, rate: So many, and the share in which the event happened.
        low, high: The rate's 95% interval.
        goal: What the rate must be; empty if it is only written down.
        reached: Whether it is.
        code: Digest of the gate's code.
    """

    situation: str
    trials: int
    rate: float
    low: float
    high: float
    goal: str
    reached: bool
    code: str


def main() -> None:
    """Run what is not in the results yet, and write them."""
    path, code = RESULTS / "gate_conditions.json", code_digest(("tasks.gate.decide",))
    known = json.loads(path.read_text())["results"] if path.exists() else []
    found = {each["situation"]: Outcome(**each) for each in known if each["code"] == code}
    above = ""
    for situation, goal, trials, run in conditions():
        before, above = above, situation
        if situation in found:
            continue
        started = time.monotonic()
        random = np.random.default_rng([SEED, *situation.encode()])
        hits = sum(run(random) for _ in range(trials))
        least = 0.8 * found[before].rate if goal == _RELATIVE else None
        found[situation] = _outcome(situation, hits, trials, goal, code, least)
        print(f"{time.monotonic() - started:5.0f} s  {_row(found[situation])}", flush=True)
        _write(path, [found[name] for name, *_ in conditions() if name in found])


def conditions() -> Iterator[tuple[str, str, int, Draw]]:
    """Each condition: what is drawn, the goal, how often, and a draw that returns its event as 1
    or 0, or a share."""
    yield from many_retrains()
    yield from in_groups()
    yield from rare_ruin()
    yield from weighted_losses()
    yield from small_labels()
    yield from what_is_seen()


# Many retrains on the same test set


def many_retrains() -> Iterator[tuple[str, str, int, Draw]]:
    """A decline within the margin, equal models, and lucky promotions."""
    for n in (1000, 2000):
        for anchored in (False, True):
            with_ = "with" if anchored else "without"
            yield (
                f"a true loss of 1 point in each of 20 retrains, not worse 0.03, n = {n}, {with_} "
                "the anchor: the deployed model is 5 points worse",
                "<= 2%" if anchored else "",
                RUNS,
                functools.partial(over_time.decline, n=n, anchored=anchored),
            )
    for anchored in (False, True):
        with_ = "with" if anchored else "without"
        yield (
            f"100 retrains of equal models, not worse 0.03, n = 1000, {with_} the anchor: share "
            "released in the last 20",
            _RELATIVE if anchored else "",
            RUNS // 2,
            functools.partial(over_time.equal_retrains, n=1000, anchored=anchored),
        )
    for looks in (0, 20):
        yield (
            f"20 retrains of equal models, better, n = 1000, gate.looks {looks}: at least one false"
            " promotion",
            "<= 5%" if looks else "",
            TRIALS,
            functools.partial(over_time.false_promotion, n=1000, looks=looks),
        )


# Rows that belong together


def in_groups() -> Iterator[tuple[str, str, int, Draw]]:
    """Equal models, and models that are worse by the margin, on rows in groups."""
    for size in (5, 20):
        for margin in (0.0, 0.05):
            for known in (False, True):
                claim = "better" if not margin else f"not worse {margin:g}"
                yield (
                    f"groups of {size} rows with intra-class correlation 0.5, n = 600, group_by "
                    f"{'given' if known else 'not given'}: false {claim}",
                    "<= 5%" if known else "",
                    TRIALS,
                    functools.partial(grouped, size=size, margin=margin, known=known),
                )


def grouped(random: np.random.Generator, size: int, margin: float, known: bool) -> float:
    n, discordance = 600, 0.15
    shares = [(discordance - margin) / 2, 1 - discordance, (discordance + margin) / 2]
    group = np.arange(n) // size
    own = random.choice([1.0, 0.0, -1.0], n, p=shares)
    common = random.choice([1.0, 0.0, -1.0], n // size, p=shares)[group]
    # Two rows of a group both have its outcome with probability 0.5.
    gains = np.where(random.random(n) < math.sqrt(0.5), common, own)
    if known:
        pairs = bootstrap_mean.by_group(gains, np.ones(n), group)
        found = bootstrap_mean.compare(*pairs, null=-margin, resamples=RESAMPLES)
        return float(found.p_value <= ALPHA)
    return float(passes(gains > 0, gains < 0, margin))


# Scores with rare ruin


def rare_ruin() -> Iterator[tuple[str, str, int, Draw]]:
    """Bounded scores: most rows gain a little, few lose nearly all."""
    yield "8% gain 0.1 and 1% lose 0.8, n = 150: false better", "<= 5%", TRIALS, few_ruined
    yield "99% slightly better and 1% ruined, n = 150: false better", "<= 5%", TRIALS, all_but_few
    yield "a gain of 0.03 ROUGE-L with spread 0.15, n = 150: passes better", ">= 50%", TRIALS, gain


def _better(gains: np.ndarray, bounded: bool) -> float:
    weights = np.ones(len(gains))
    found = bootstrap_mean.compare(gains, weights, resamples=RESAMPLES, bounded=bounded)
    return float(found.p_value <= ALPHA)


def few_ruined(random: np.random.Generator, bounded: bool = True) -> float:
    """One draw: a few rows gain a little, fewer lose nearly all."""
    return _better(random.choice([0.1, -0.8, 0.0], 150, p=[0.08, 0.01, 0.91]), bounded)


def all_but_few(random: np.random.Generator, bounded: bool = True) -> float:
    """One draw: all rows but a few gain very little."""
    return _better(random.choice([0.8 / 99, -0.8], 150, p=[0.99, 0.01]), bounded)


def gain(random: np.random.Generator) -> float:
    theirs = random.beta(2, 3, 150)
    ours = np.clip(theirs + 0.03 + random.normal(0, 0.15, 150), 0, 1)
    return _better(ours - theirs, True)


def weighted_losses() -> Iterator[tuple[str, str, int, Draw]]:
    """Losses per token: no bound on what an unseen example may lose, so these are written down."""
    for sigma in (0.5, 1.0, 1.5):
        for n in (150, 314):
            yield (
                f"losses per token, log-normal harm of sigma {sigma:g}, n = {n}: false better",
                "<= 5%" if sigma < 1.5 else "",
                TRIALS,
                functools.partial(_skewed, sigma=sigma, n=n),
            )
    for n in (150, 314):
        yield (
            f"losses per token, gain that falls with length, n = {n}: false better",
            "",
            TRIALS // 2,
            functools.partial(_by_length, n=n),
        )


def _skewed(random: np.random.Generator, sigma: float, n: int) -> float:
    gains = 0.3 * (math.exp(sigma**2 / 2) - random.lognormal(0, sigma, n))
    tokens = np.maximum(1, np.round(random.lognormal(3, 0.6, n)))
    return float(bootstrap_mean.compare(gains, tokens, resamples=RESAMPLES).p_value <= ALPHA)


def _by_length(random: np.random.Generator, n: int) -> float:
    tokens = random.lognormal(3, 1.0, n)
    # The token-weighted mean of a log-normal's logarithm is its mean plus its variance.
    gains = 0.05 * (4 - np.log(tokens)) + random.normal(0, 0.1, n)
    return float(bootstrap_mean.compare(gains, tokens, resamples=RESAMPLES).p_value <= ALPHA)


# Metrics averaged over labels


def small_labels() -> Iterator[tuple[str, str, int, Draw]]:
    """Equal models by macro F1 and macro recall, with a small minority."""
    for n in (150, 320):
        for metric in ("f1", "recall"):
            yield (
                f"macro {metric}, 90% and 10% of the rows, n = {n}: false better",
                "<= 5%",
                TRIALS,
                functools.partial(minority, n=n, metric=metric),
            )


def minority(random: np.random.Generator, n: int, metric: bootstrap_f1.Metric) -> float:
    truth = random.choice(["a", "b"], n, p=[0.9, 0.1])
    if min((truth == label).sum() for label in "ab") < LEAST_SUPPORT:
        return 0.0  # The gate rejects.
    # Of equal macro recall, one model is better on each label.
    skills = ((0.99, 0.56), (0.95, 0.6)) if metric == "recall" else ((0.95, 0.6),) * 2
    answers = [
        np.where(random.random(n) < np.where(truth == "a", *skill), truth, _other(truth))
        for skill in skills
    ]
    found = bootstrap_f1.bootstrap_difference(truth, *answers, metric, resamples=RESAMPLES)
    return float(found.p_value <= ALPHA)


def _other(truth: np.ndarray) -> np.ndarray:
    return np.where(truth == "a", "b", "a")


# What is there must be seen


def what_is_seen() -> Iterator[tuple[str, str, int, Draw]]:
    """True gains, and equally good candidates."""
    for n, gain, discordance, least in ((150, 0.05, 0.1, 60), (314, 0.03, 0.05, 78)):
        yield (
            f"a true gain of {100 * gain:g} points, discordance {discordance:.0%}, n = {n}: "
            "passes better",
            f">= {least}%",
            TRIALS,
            functools.partial(pairs, n=n, gain=gain, discordance=discordance, margin=0.0),
        )
    for n in (150, 314, 1000, 2000):
        yield (
            f"an equally good candidate, discordance 10%, n = {n}: passes not worse 0.02",
            "",
            TRIALS,
            functools.partial(pairs, n=n, gain=0.0, discordance=0.1, margin=0.02),
        )


def pairs(
    random: np.random.Generator, n: int, gain: float, discordance: float, margin: float
) -> float:
    shares = [(discordance + gain) / 2, (discordance - gain) / 2, 1 - discordance]
    gained, lost, _ = random.multinomial(n, shares)
    return float(gained >= fewest_gains(int(gained + lost), n, margin, ALPHA))


# Results


def _outcome(
    situation: str, hits: float, trials: int, goal: str, code: str, least: float | None
) -> Outcome:
    rate = hits / trials
    low, high = proportion_confint(round(hits), trials, method="beta")
    reached = True
    if goal.startswith("<="):
        reached = low <= float(goal[3:-1]) / 100
    elif least is not None:
        reached = rate >= least
    elif goal:
        reached = high >= float(goal[3:-1]) / 100
    return Outcome(
        situation, trials, round(rate, 4), round(low, 4), round(high, 4), goal, reached, code
    )


def _row(one: Outcome) -> str:
    rate = f"{one.rate:.1%} ({one.low:.1%} to {one.high:.1%})"
    reached = ("yes" if one.reached else "NO") if one.goal else ""
    return f"| {one.situation} | {one.trials:,} | {rate} | {one.goal} | {reached} |"


def _write(path: Path, found: list[Outcome]) -> None:
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    report = {"date": date, "seed": SEED, "results": [asdict(one) for one in found]}
    path.write_text(json.dumps(report, indent=1) + "\n")
    lines = [
        "# What the gate withstands",
        "",
        f"Seed {SEED}, one-sided alpha {ALPHA}, {date}. Made by `make gate-simulation`. Without a "
        "goal, a rate is written down for comparison.",
        "",
        "| situation | trials | rate, with its 95% interval | goal | reached |",
        "|---|---|---|---|---|",
        *map(_row, found),
        "",
    ]
    path.with_suffix(".md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
