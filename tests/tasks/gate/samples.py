"""Builders of evidence, and short ways to look at verdicts."""

import numpy as np

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import Verdict
from tasks.gate.decide import decide
from tasks.gate.evidence import Evidence
from tests.tasks.evaluate.samples import LABELS, N, label_table, score_table

RELEASE = "release 7"
EQUAL = {"gained": 10, "lost": 10, "both": 560, "neither": 20}
"""Outcomes of two equally good classifiers."""

BETTER = GateRecipe(claim="better")
LOSS = GateRecipe(metric="loss", margin=0.05)
BETTER_LOSS = GateRecipe(metric="loss", claim="better")


def paired_outcomes(gained=0, lost=0, both=0, neither=0):
    """Whether candidate and baseline are right, for the given counts of outcomes, shuffled."""
    kinds = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], [gained, lost, both, neither], axis=0)
    kinds = np.random.default_rng(0).permutation(kinds).astype(bool)
    return kinds[:, 0], kinds[:, 1]


def label_evidence(candidate, baseline=None, **changes) -> Evidence:
    """Evidence on classifiers."""
    return Evidence(
        **{
            "candidate": candidate,
            "baseline": baseline,
            "candidate_labels": LABELS,
            "baseline_labels": None if baseline is None else LABELS,
            "candidate_seen": np.empty((0, 2), np.uint64),
            "baseline_seen": np.empty((0, 2), np.uint64),
            "latency_ms": None,
            "size_bytes": 90_000_000,
            **changes,
        }
    )


def paired_labels(changes=None, **counts) -> Evidence:
    """Evidence on classifiers with the given counts of outcomes."""
    candidate, baseline = paired_outcomes(**counts)
    return label_evidence(label_table(candidate), label_table(baseline), **(changes or {}))


def decide_on(found, rules=None, slices=(), baseline=RELEASE, look_number=1, **others) -> Verdict:
    """The verdict on evidence; what is not given does not matter to it."""
    return decide(
        found,
        rules or GateRecipe(),
        slices,
        candidate_digest="c" * 64,
        baseline=baseline,
        baseline_digest="" if baseline == "none" else "b" * 64,
        baseline_entry=0 if baseline == "none" else 7,
        test_digest="t" * 64,
        look_number=look_number,
        **others,
    )


def rule(verdict, kind, slice_=""):
    """The only outcome of a kind on a slice."""
    (found,) = [r for r in verdict.rules if r.rule == kind and r.slice == slice_]
    return found


def reasons(verdict) -> str:
    """Why the evidence was rejected as unusable."""
    assert verdict.outcome == "rejected"
    assert {r.rule for r in verdict.rules} == {"error"}
    return " ".join(r.sentence for r in verdict.rules)


def hashes_of(*rows):
    """The hashes of rows, as a model's `seen.npy` holds them."""
    return np.array([[row, row * 7] for row in sorted(rows)], np.uint64).reshape(-1, 2)


def score_evidence(candidate, baseline=None, **changes) -> Evidence:
    """Evidence on language models."""
    return Evidence(
        **{
            "candidate": candidate,
            "baseline": baseline,
            "candidate_labels": (),
            "baseline_labels": None if baseline is None else (),
            "candidate_seen": None,
            "baseline_seen": None,
            "latency_ms": None,
            "size_bytes": 90_000_000,
            "task": "instruction",
            **changes,
        }
    )


def paired_losses(gain=0.0, spread=0.3, n=N, seed=4, **changes):
    """Evidence on a candidate whose losses are lower by `gain` on average, with noise."""
    draw = np.random.default_rng(seed)
    theirs = draw.lognormal(0.8, 0.4, n)
    noise = spread * draw.normal(size=n)
    # The noise adds up to 0 over all tokens.
    tokens = np.arange(n) % 40 + 3
    ours = np.maximum(theirs - gain + noise - (noise * tokens).sum() / tokens.sum(), 0.01)
    return score_evidence(score_table(ours, n), score_table(theirs, n), **changes)
