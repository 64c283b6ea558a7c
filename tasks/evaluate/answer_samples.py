"""A few answers of language models for people to read, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tasks.evaluate.score_table import keys_of, values_of

CUT = 200
"""Characters of a text that are shown."""

_SIGNS = re.compile(r"([\\`*_<>\[\]#~$&])")
_BY_DEFAULT = ("exact_match", "token_f1", "rouge_l", "checks", "loss")


class Sample(NamedTuple):
    """One row of the table, safe in markdown: `report.markdown_table` takes it as it is."""

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
    """Choose answers that show how two models differ, and some that were chosen blindly.

    Half of them (the larger one) are those on which the models differ most by a metric, better and
    worse in turn; the others are the first of the rest in the order of their inputs' hashes, which
    is as good as drawn by lot, and the same in every run.

    Args:
        candidate: The candidate's scores, as `tasks.evaluate.language_program` wrote them.
        baseline: The baseline's; None where there is none.
        texts: Each input's text by its hash (hash_hi, hash_lo).
        n: How many.
        metric: By which they differ; another one that was measured where this was not.

    Returns:
        The rows; none, where the candidate wrote no answers.
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


def readable(text: str, cut: int = CUT) -> str:
    """A text in one line, cut, with the signs escaped that mean something in markdown; `|` is left
    to whoever makes the table."""
    line = " ".join(text.split())
    line = line if len(line) <= cut else f"{line[: cut - 1].rstrip()}…"
    return _SIGNS.sub(r"\\\1", line)


def _by_key(table: pa.Table) -> dict[tuple[int, int], dict[str, object]]:
    keys = map(tuple, keys_of(table).tolist())
    return dict(zip(keys, table.to_pylist(), strict=True))


def _measure(candidate: pa.Table, baseline: pa.Table | None, metric: str) -> str:
    tables = [candidate] if baseline is None else [candidate, baseline]
    for name in (metric, *_BY_DEFAULT):
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
    """Inputs on which the models differ, by how much: gains and losses in turn."""
    if not metric or not theirs:
        return []
    gains = {key: ours[key][metric] - theirs[key][metric] for key in keys if key in theirs}
    better = sorted((key for key in gains if gains[key] > 0), key=lambda key: (-gains[key], key))
    worse = sorted((key for key in gains if gains[key] < 0), key=lambda key: (gains[key], key))
    if metric == "loss":
        better, worse = worse, better
    length = max(len(better), len(worse))
    return [side[place] for place in range(length) for side in (better, worse) if place < len(side)]
