"""The data report: rows, labels, lengths, duplicates, conflicts and warnings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.contracts.artifacts import SPLITS, Artifact
from tasks.contracts.recipe_data import DataRecipe
from tasks.load.dedup import Deduplicated
from tasks.load.json_values import parse_json
from tasks.load.labels import spellings
from tasks.load.row_formats import answer_of
from tasks.load.shards import bin_start, label_hash
from tasks.load.splits import TRAIN
from tasks.storage.store import Store

_EXCERPT = 160
_MAX_ANSWERS = 20
_ROWS_PER_OWNER = 2
_PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


@dataclass
class Shard:
    """One distinct shard, how often it occurs in the source, and its `stats.json`."""

    artifact: Artifact
    times: int
    stats: dict[str, Any]


def rows_per_label(shards: list[Shard], dedup: Deduplicated) -> dict[str, dict[str, int]]:
    """Return the number of kept rows by label and split."""
    labels = sorted({label for shard in shards for label in shard.stats["labels"]})
    names = {label_hash(label): label for label in labels}
    counts = {label: dict.fromkeys(SPLITS, 0) for label in labels}
    for (hashed, split), number in dedup.counts.items():
        counts[names[hashed]][SPLITS[split - 1]] = number
    return counts


def data_report(
    store: Store,
    shards: list[Shard],
    dedup: Deduplicated,
    rows: dict[str, int],
    label_counts: dict[str, dict[str, int]] | None,
) -> dict[str, Any]:
    """Return the data report.

    Args:
        store: Holds the shards.
        shards: The distinct shards.
        dedup: Which of their rows are kept.
        rows: Number of kept rows by split.
        label_counts: Number of kept rows by label and split; None for language models.
    """
    empty = sum(shard.stats["empty"]["rows"] * shard.times for shard in shards)
    repeated = sum(shard.stats["rows"] * (shard.times - 1) for shard in shards)
    held_out = rows["validation"] + rows["test"]
    return {
        "schema_version": 1,
        "rows_read": int(dedup.starts[-1]) + repeated + empty,
        "empty_skipped": empty,
        "rows": rows,
        **(_row_format_counts(shards) if label_counts is None else {"labels": label_counts}),
        "characters": _lengths(shards, "lengths"),
        "owners": _owners(shards),
        "duplicates_dropped": dedup.duplicates + repeated,
        "leaks_dropped": {split: dedup.leaks[number + 1] for number, split in enumerate(SPLITS)},
        # Several labels of one text are a conflict; several answers are not.
        "several_answers" if label_counts is None else "conflicts": {
            "inputs": dedup.conflicts,
            "rows_dropped": {
                split: dedup.conflicts_dropped[number + 1] for number, split in enumerate(SPLITS)
            },
            "examples": conflict_examples(store, shards, dedup),
        },
        "near_duplicates": {
            "estimate": sum(dedup.near.values()),
            "of": held_out,
            "by_split": {name: dedup.near[TRAIN + n] for n, name in enumerate(SPLITS) if n},
            "method": "validation and test examples that share a MinHash band (64 permutations, 8 "
            "bands, shingles of 3 words; Broder 1997) with a training example: likely where "
            "three quarters or more of the shingles are shared",
            "examples": [_pair(store, shards, dedup, each) for each in dedup.near_rows],
        },
    }


def _owners(shards: list[Shard]) -> dict[str, dict[str, int]]:
    """For each column that looks like an owner, its rows, and its values within the shards."""
    found: dict[str, dict[str, int]] = {}
    for shard in shards:
        for name, (rows, values) in shard.stats["owners"].items():
            counts = found.setdefault(name, {"rows": 0, "values": 0})
            counts["rows"] += rows * shard.times
            counts["values"] += values
    return found


def _row_format_counts(shards: list[Shard]) -> dict[str, Any]:
    """Return the number of rows by row format, and the lengths of answers."""
    counts = Counter[str]()
    for shard in shards:
        counts.update({name: n * shard.times for name, n in shard.stats["row_formats"].items()})
    return {
        "row_formats": dict(sorted(counts.items())),
        "answer_characters": _lengths(shards, "answer_lengths"),
    }


def _lengths(shards: list[Shard], name: str) -> dict[str, int]:
    """Return percentiles of lengths in characters, each at most 1/16 too low; empty if no rows."""
    bins = Counter[int]()
    for shard in shards:
        bins.update({int(n): count * shard.times for n, count in shard.stats[name].items()})
    if not bins:
        return {}
    numbers = sorted(bins)
    cumulative = np.cumsum([bins[number] for number in numbers])
    places = np.searchsorted(
        cumulative, [cumulative[-1] * percent / 100 for percent in _PERCENTILES]
    )
    return {
        f"p{percent}": bin_start(numbers[place])
        for percent, place in zip(_PERCENTILES, places, strict=True)
    }


def conflict_examples(
    store: Store, shards: list[Shard], dedup: Deduplicated
) -> list[dict[str, Any]]:
    """Return the first few inputs with more than one label or answer, with these."""
    return [_conflict(store, shards, dedup, rows) for rows in dedup.conflict_rows]


def _conflict(
    store: Store, shards: list[Shard], dedup: Deduplicated, rows: tuple[int, ...]
) -> dict[str, Any]:
    name = "label" if "labels" in shards[0].stats else "answer"
    chosen = rows if name == "label" else rows[:_MAX_ANSWERS]
    found = [_row(store, shards, dedup, row) for row in chosen]
    return {"text": found[0]["text"], f"{name}s": sorted(each[name] for each in found)}


def _pair(
    store: Store, shards: list[Shard], dedup: Deduplicated, rows: tuple[int, int]
) -> dict[str, Any]:
    held, train = (_row(store, shards, dedup, row) for row in rows)
    return {"split": SPLITS[dedup.keep[rows[0]] - 1], "held_out": held, "train": train}


def _row(store: Store, shards: list[Shard], dedup: Deduplicated, row: int) -> dict[str, str]:
    import pyarrow.parquet as pq

    shard, place = dedup.locate(row)
    path = store.file(shards[shard].artifact, "rows.parquet")
    column = "label" if "labels" in shards[shard].stats else "example"
    found = pq.read_table(path, columns=["text", column]).slice(place, 1).to_pylist()[0]
    if column == "label":
        return {"text": _excerpt(found["text"]), "label": found["label"]}
    answer = answer_of(parse_json(found["example"]))
    return {"text": _excerpt(found["text"]), "answer": _excerpt(answer)}


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def label_warnings(data: DataRecipe, label_counts: dict[str, dict[str, int]]) -> list[str]:
    """Return warnings about labels that differ only in spelling, and about those that the training
    split or all rows lack."""
    found = [_spelling_warning(group, label_counts) for group in spellings(label_counts)]
    absent = [label for label, counts in label_counts.items() if not counts["train"]]
    if absent:
        tested = [label for label in absent if label_counts[label]["test"]]
        found.append(f"No training example has {_listed('label', absent)}")
        if tested:
            found.append(f"The test split has {_listed('label', tested)}, never seen in training")
    unused = sorted(set(data.labels) - set(label_counts))
    if unused:
        found.append(f"data.labels names {_listed('label', unused)}, which no row has")
    return found


def _spelling_warning(labels: list[str], label_counts: dict[str, dict[str, int]]) -> str:
    counted = [
        f"{label!r} ({_count(sum(label_counts[label].values()), 'row')})" for label in labels
    ]
    return (
        f"The labels {', '.join(counted[:-1])} and {counted[-1]} differ only in spelling, but are "
        "separate classes: merge them with data.normalize_labels or data.label_map"
    )


def data_warnings(report: dict[str, Any]) -> list[str]:
    """Return warnings about leaks, conflicting labels and near-duplicates."""
    found = []
    if empty := report["empty_skipped"]:
        found.append(
            f"{empty:,} of {report['rows_read']:,} rows are empty and were left out (data.empty)"
        )
    for name, counts in report["owners"].items():
        if counts["rows"] >= _ROWS_PER_OWNER * counts["values"]:
            found.append(
                f"the column {name!r} has at most {counts['values']:,} values in "
                f"{counts['rows']:,} rows. If rows of one {name.removesuffix('_id')} resemble each "
                f"other, set data.split.group_by to {name}: else the test set says less than the "
                "gate believes"
            )
    leaks = sum(report["leaks_dropped"].values())
    if leaks:
        found.append(
            f"{leaks} examples were dropped because their inputs are also in a split that judges"
        )
    conflicts = report.get("conflicts", {"inputs": 0})
    if conflicts["inputs"]:
        found.append(_conflict_warning(conflicts))
    near, held = report["near_duplicates"]["estimate"], report["near_duplicates"]["of"]
    if near:
        found.append(
            f"{near} of {held} validation and test examples resemble a training example closely: "
            "results on them may flatter the model"
        )
    return found


def _conflict_warning(conflicts: dict[str, Any]) -> str:
    dropped = sum(conflicts["rows_dropped"].values())
    left = "were left out" if dropped else "are trained on"
    texts = _count(conflicts["inputs"], "text")
    rows = f" ({dropped:,} rows)" if dropped else ""
    first = conflicts["examples"][0]
    labels = " and ".join(map(repr, first["labels"]))
    return (
        f"{texts} with more than one label {left}{rows} (data.conflicts), such as "
        f"{first['text']!r} with {labels}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(noun: str, names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the {noun}{'s' if len(names) > 1 else ''} {shown}{more}"
