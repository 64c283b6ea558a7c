"""A few answers of candidate and baseline for the report, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tasks.evaluate.score_table import keys_of, values_of

MAX_CHARACTERS = 200
"""Characters of a text that are shown."""

_MARKDOWN = re.compile(r"([\\`*_<>\[\]#~$&])")
_FALLBACK_METRICS = ("exact_match", "token_f1", "rouge_l", "checks", "loss")


class Sample(NamedTuple):
    """One row of the table, escaped for `tasks.report.markdown.markdown_table`."""

    prompt: str
    reference: str
    baseline: str
    candidate: str


def sample_answers(
    candidate: pa.Table,
    baseline: pa.Table | None,
    texts: Mapping[tuple[int, int], str],
    n: int = 5,
    metric: str = "rouge_l",
) -> list[Sample]:
    """Choose answers on which the models differ most, and a few others.

    Half of the samples, rounded up, are the answers that differ most by a metric, alternating
    between better and worse. The others are the first remaining ones in the order of their inputs'
    hashes, which is as good as random and the same in every run.

    Args:
        candidate: The candidate's score table, as `tasks.evaluate.language_program` writes it.
        baseline: The baseline's score table; None without a baseline.
        texts: Each input's text by its hash (hash_hi, hash_lo).
        n: Number of samples.
        metric: The metric to compare by; another measured one if this was not measured.

    Returns:
        The samples; empty if the candidate generated no answers.
    """
    if "generated" not in candidate.column_names:
        return []
    ours = _by_key(candidate)
    theirs = _by_key(baseline) if baseline is not None else {}
    keys = sorted(ours)
    differing = _most_different(ours, theirs, keys, _measure(candidate, baseline, metric))
    chosen = differing[: -(-n // 2)]
    chosen += [key for key in keys if key not in chosen][: n - len(chosen)]
    return [
        Sample(
            readable(texts.get(key, "")),
            readable(ours[key].get("reference") or ""),
            readable(theirs.get(key, {}).get("generated") or ""),
            readable(ours[key]["generated"] or ""),
        )
        for key in chosen
    ]


def readable(text: str, most: int = MAX_CHARACTERS) -> str:
    """A text in one shortened line, with markdown escaped except `|`, which the table escapes."""
    line = " ".join(text.split())
    line = line if len(line) <= most else f"{line[: most - 1].rstrip()}…"
    return _MARKDOWN.sub(r"\\\1", line)


def _by_key(table: pa.Table) -> dict[tuple[int, int], dict[str, object]]:
    keys = map(tuple, keys_of(table).tolist())
    return dict(zip(keys, table.to_pylist(), strict=True))


def _measure(candidate: pa.Table, baseline: pa.Table | None, metric: str) -> str:
    tables = [candidate] if baseline is None else [candidate, baseline]
    for name in (metric, *_FALLBACK_METRICS):
        if all(
            name in table.column_names and np.isfinite(_floats(table, name)).all()
            for table in tables
        ):
            return name
    return ""


def _floats(table: pa.Table, name: str) -> np.ndarray:
    return values_of(table, name).astype(float)


def _most_different(
    ours: dict, theirs: dict, keys: list[tuple[int, int]], metric: str
) -> list[tuple[int, int]]:
    """Inputs on which the models differ, largest difference first, alternating in direction."""
    if not metric or not theirs:
        return []
    gains = {key: ours[key][metric] - theirs[key][metric] for key in keys if key in theirs}
    better = sorted((key for key in gains if gains[key] > 0), key=lambda key: (-gains[key], key))
    worse = sorted((key for key in gains if gains[key] < 0), key=lambda key: (gains[key], key))
    if metric == "loss":
        better, worse = worse, better
    length = max(len(better), len(worse))
    return [side[i] for i in range(length) for side in (better, worse) if i < len(side)]
