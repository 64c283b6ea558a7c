"""The figures of `language_training`: medians and ratios, if all contenders did equal work."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import measure
from tests.benchmarks.measure import Timed

OURS = "Burnish"
SKIPPED_STEPS = 2
"""Before the steady rate is taken."""
LOSS_TOLERANCE = 0.01
"""By which share losses may differ: packed rows are not filled to the brim, so that an epoch has a
step more; examples come in another order; adapters begin elsewhere."""


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        python: Of its environment.
        script: What it runs, `-m MODULE` or a file.
        options: Its own, in the specification.
    """

    python: Path
    script: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def figures(
    spec: dict[str, Any], contenders: Mapping[str, Contender], runs: Mapping[str, Sequence[Timed]]
) -> dict[str, Any]:
    """Medians and ratios of one comparison.

    Raises:
        RuntimeError: The contenders did not do the same.
    """
    facts = {who: [last_line(once) for once in each] for who, each in runs.items()}
    same(spec, contenders, facts)
    each = {who: summary(spec, contenders[who], facts[who]) for who in runs}
    return {
        "tokens": spec["train_tokens"],
        "target_tokens": spec["target_tokens"],
        "precision": spec["precision"],
        "median_length": spec["median_length"],
        "longest_example": spec["longest_example"],
        "contenders": each,
        "ratios": ratios(each, "steady"),
        "whole_call_ratios": ratios(each, "whole_call"),
        "ratios_by_cpu": ratios(each, "steady_by_cpu"),
        "disturbance": measure.disturbance([runs]),
        "single": {**measure.as_lists(runs)},
    }


def ratios(each: Mapping[str, dict[str, Any]], rate: str) -> dict[str, float]:
    """How many times as fast ours is; 0 where nothing was measured."""
    ours = each[OURS][rate]
    return {
        who: round(ours / other[rate], 3) if other[rate] else 0.0
        for who, other in each.items()
        if who != OURS
    }


def last_line(once: Timed) -> dict[str, Any]:
    """The facts that a contender prints last."""
    return json.loads(once.output.splitlines()[-1])


def same(
    spec: dict[str, Any],
    contenders: Mapping[str, Contender],
    facts: Mapping[str, Sequence[dict[str, Any]]],
    tolerance: float = LOSS_TOLERANCE,
) -> None:
    """Refuse a comparison of unequal work.

    Raises:
        RuntimeError: Tokens, trained parameters or losses differ.
    """
    trained = {who: {once["trained_parameters"] for once in each} for who, each in facts.items()}
    if len(set.union(*trained.values())) > 1:
        raise RuntimeError(f"not as many trained parameters: {trained}")
    losses = [once["eval_loss"] for each in facts.values() for once in each]
    if max(losses) > (1 + tolerance) * min(losses):
        found = {who: [once["eval_loss"] for once in each] for who, each in facts.items()}
        raise RuntimeError(f"not the same loss after the same tokens: {found}")
    for who, each in facts.items():
        whole = spec["train_tokens"]
        seen = [once["samples"][-1][2] for once in each if once["samples"]]
        if "steps" in each[0]:
            # Ours tells a rounded rate, not of each step; so its steps are counted.
            wanted = math.ceil(spec["examples"] / spec["batch"])
            equal = {once["steps"] for once in each} == {wanted} and max(seen, default=0) < (
                1.001 * whole
            )
        else:
            equal = set(seen) == {whole}
        if not equal:
            raise RuntimeError(f"{who} saw {seen} tokens instead of {whole}")


def summary(
    spec: dict[str, Any], contender: Contender, facts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """One contender's medians."""
    tokens = spec["train_tokens"]
    steady_rates = [steady(once["samples"]) for once in facts]
    by_cpu = [steady(once["samples"], clock=3) for once in facts]
    calls = [once["seconds"] for once in facts]
    return {
        "tokens": tokens,
        "steady": round(statistics.median(steady_rates), 1),
        "steady_each": [round(rate, 1) for rate in steady_rates],
        "whole_call": round(tokens / statistics.median(calls), 1),
        "call_seconds": [round(seconds, 2) for seconds in calls],
        "steady_by_cpu": round(statistics.median(by_cpu), 1),
        "whole_call_by_cpu": round(
            tokens / statistics.median(once["cpu_seconds"] for once in facts), 1
        ),
        "eval_loss": [round(once["eval_loss"], 4) for once in facts],
        "steps": facts[0].get("steps") or facts[0]["samples"][-1][0],
        "peak_mb": max(once["peak_mb"] for once in facts),
        "attention": facts[0]["attention"],
        "trained_parameters": facts[0]["trained_parameters"],
    }


def steady(samples: Sequence[Sequence[float]], clock: int = 1) -> float:
    """Real tokens per second, the first steps left out.

    Args:
        samples: Step, seconds, tokens, processor seconds: at the end of steps, maybe not of each.
        clock: Which of them is the time: 1 or 3.

    Returns:
        0 where there are too few samples.
    """
    counted = [sample for sample in samples if sample[0] >= SKIPPED_STEPS]
    if len(counted) < 2:
        return 0.0
    first, last = counted[0], counted[-1]
    seconds = last[clock] - first[clock]
    return (last[2] - first[2]) / seconds if seconds else 0.0
