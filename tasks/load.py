"""Load: read the data, cut it into shards by content, split it, and judge its quality.

Only pieces of files that were never seen are read (tasks/data/gather.py). Then all rows are looked
at together, in flat memory (tasks/data/merge.py): duplicates are collapsed, inputs that lie in two
splits are dropped from the one that learns, and what looks wrong is refused or reported.
"""

from __future__ import annotations

import difflib
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import orjson

from tasks.cache import Room, step
from tasks.contracts.artifact import SPLITS, Artifact, Loaded, Source
from tasks.contracts.base import Contract
from tasks.contracts.training import DataRecipe, Task
from tasks.data.examples import TEST, TRAIN, VALIDATION, read_split, write_examples
from tasks.data.forms import CLASSES, answer_of
from tasks.data.gather import LIBRARIES, Read, gather
from tasks.data.merge import Settled, find_near, settle
from tasks.data.readers import missing_column
from tasks.data.shards import bin_start, label_hash
from tasks.data.splits import split_by_name
from tasks.errors import BadData
from tasks.report import run_logger
from tasks.store import Store, open_store

__all__ = ["TEST", "TRAIN", "VALIDATION", "LoadInputs", "load", "read_split", "write_examples"]

_EXCERPT = 160
_MOST_ANSWERS = 20
_PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


class LoadInputs(Contract):
    """What the data are: their content, and how to read it.

    Attributes:
        data: The recipe's settings; its `uri` is not part of the key.
        source: The files. Their content is part of the key, and what their names mean.
        task: What they are read for.
        all_judge: Whether every row is a test example, whatever the recipe says of splits.
    """

    data: DataRecipe
    source: Source
    task: Task = CLASSES
    all_judge: bool = False

    def key_part(self) -> dict[str, Any]:
        """Settings and contents: a file that is moved or renamed is the same content, unless its
        name says a label, a split or a format."""
        contents = sorted(
            [file.digest, file.size, *self._meaning(PurePosixPath(file.path))]
            for file in self.source.files
        )
        asked = {"data": self.data.key_part(), "contents": contents, "task": self.task}
        return {**asked, "all_judge": True} if self.all_judge else asked

    def _meaning(self, path: PurePosixPath) -> list[Any]:
        labelled = self.data.format == "text-folders" and self.task == CLASSES
        return [
            path.suffix.lower(),
            path.parent.name if labelled else "",
            split_by_name(str(path)) if self.data.split.by == "files" else 0,
        ]


@dataclass
class _Shard:
    """One distinct shard, how often the source has it, and what its `stats.json` says."""

    artifact: Artifact
    times: int
    stats: dict[str, Any]


@step("load", result=Loaded, code=("tasks.load",), libraries=LIBRARIES)
def load(inputs: LoadInputs, room: Room) -> Loaded:
    """Read and split the data.

    Raises:
        BadData: They cannot be read, or cannot be trained on; with file and row.
        BadRecipe: The settings contradict each other.
        NotFound, NoAccess, HubFailed, StorageFailed: They cannot be fetched.
    """
    store = open_store(room.store)
    with store.scratch() as scratch:
        classes = inputs.task == CLASSES
        split_as = TEST if inputs.all_judge else 0
        found, new = gather(inputs.data, inputs.source, room, scratch, inputs.task, split_as)
        shards = _distinct(store, found)
        rows = sum(shard.stats["rows"] * shard.times for shard in shards)
        run_logger().info("%d rows in %d shards, %d read anew", rows, len(shards), len(new))
        if classes:
            _check_labels(inputs.data, shards, found)
        _check_optional_columns(inputs, shards)
        indexes = [store.file(shard.artifact, "index.npy") for shard in shards]
        out = scratch / "dataset"
        out.mkdir()
        settled = settle(indexes, out / "seen.npy", by_label=classes)
        bands = scratch / "bands"
        bands.mkdir()
        find_near([store.file(shard.artifact, "near.npy") for shard in shards], settled, bands)
        return _finish(inputs, store, shards, settled, len(new), out)


def _distinct(store: Store, found: list[Read]) -> list[_Shard]:
    """The shards, each once, in an order that does not depend on the source's."""
    times = Counter(read.artifact.digest for read in found)
    artifacts = {read.artifact.digest: read.artifact for read in found}
    return [
        _Shard(
            artifacts[digest],
            times[digest],
            orjson.loads(store.file(artifacts[digest], "stats.json").read_bytes()),
        )
        for digest in sorted(artifacts)
    ]


# Checks


def _check_labels(data: DataRecipe, shards: list[_Shard], found: list[Read]) -> None:
    counts = Counter[str]()
    for shard in shards:
        for label, entry in shard.stats["labels"].items():
            counts[label] += sum(entry["splits"])
    if data.labels:
        for label in sorted(set(counts) - set(data.labels)):
            near = difflib.get_close_matches(label, data.labels, n=1)
            raise BadData(
                _first_row_with(label, shards, found),
                f"the label {label!r} ({counts[label]} rows)",
                f"one of data.labels: {', '.join(data.labels)}",
                (f"correct it to {near[0]!r}, " if near else "correct it, ")
                + "or add it to data.labels",
            )
    if len(counts) < 2:
        raise BadData(
            "data.label",
            f"one label only, {next(iter(counts))!r}",
            "two labels or more",
            f"check that {data.label!r} is the column of classes, or add rows of another class",
        )
    if len(counts) > 50 and len(counts) > counts.total() / 2:
        raise BadData(
            "data.label",
            f"{len(counts)} different labels in {counts.total()} rows",
            "classes that have several rows each",
            f"check that {data.label!r} is the column of classes",
        )


def _first_row_with(label: str, shards: list[_Shard], found: list[Read]) -> str:
    at = {
        shard.artifact.digest: shard.stats["labels"][label]["at"]
        for shard in shards
        if label in shard.stats["labels"]
    }
    return next(
        read.where(at[read.artifact.digest]) for read in found if read.artifact.digest in at
    )


def _check_optional_columns(inputs: LoadInputs, shards: list[_Shard]) -> None:
    """A column that single rows may lack must still be in some row."""
    data = inputs.data
    optional = {name: "data.keep_columns" for name in data.keep_columns if name != data.label}
    if data.split.group_by:
        optional[data.split.group_by] = "data.split.group_by"
    for name, setting in optional.items():
        if not any(shard.stats["present"].get(name) for shard in shards):
            columns = {column: None for shard in shards for column in shard.stats["columns"]}
            raise missing_column(f"data.uri {inputs.source.uri}", name, setting, columns)


def _check_splits(data: DataRecipe, rows: dict[str, int]) -> None:
    empty = [split for split in SPLITS if not rows[split]]
    if not empty:
        return
    counted = ", ".join(f"{split} {number}" for split, number in rows.items())
    remedy = {
        "hash": "add data, or raise data.split.test and data.split.validation",
        "column": f"check the values of the column {data.split.column!r}, or split by hash",
        "files": "add a file for each split, or set data.split.by to hash",
    }[data.split.by]
    if data.split.group_by:
        remedy = f"check that {data.split.group_by!r} has many values, or leave out group_by"
    raise BadData(
        f"data.split.{data.split.column or data.split.by}",
        f"no rows for {' and '.join(empty)} ({counted}, without duplicates)",
        "rows in train, validation and test",
        remedy,
    )


# The artifact


def _finish(
    inputs: LoadInputs,
    store: Store,
    shards: list[_Shard],
    settled: Settled,
    new: int,
    out: Path,
) -> Loaded:
    rows = dict.fromkeys(SPLITS, 0)
    for (_, split), number in settled.counts.items():
        rows[SPLITS[split - 1]] += number
    if not inputs.all_judge:
        _check_splits(inputs.data, rows)
    by_label = _by_label(shards, settled) if inputs.task == CLASSES else None
    labels = sorted(by_label or ())
    report = _report(store, shards, settled, rows, by_label)
    warnings = _label_warnings(inputs.data, by_label) if by_label else []
    report["warnings"] = warnings = warnings + _warnings(report)
    _write(out / "report.json", report)
    _write(out / "dataset.json", _description(shards, settled, labels))
    keep = {
        shard.artifact.digest: settled.keep[settled.starts[number] : settled.starts[number + 1]]
        for number, shard in enumerate(shards)
    }
    np.savez(out / "keep.npz", **keep)
    artifact = store.put("dataset", out)
    shutil.rmtree(out)
    return Loaded(
        artifact=artifact,
        labels=tuple(labels),
        rows=rows,
        test_digest=settled.test_digest,
        new_shards=new,
        shards=len(shards),
        warnings=tuple(warnings),
    )


def _by_label(shards: list[_Shard], settled: Settled) -> dict[str, dict[str, int]]:
    """Kept rows by label and split."""
    labels = sorted({label for shard in shards for label in shard.stats["labels"]})
    named = {label_hash(label): label for label in labels}
    by_label = {label: dict.fromkeys(SPLITS, 0) for label in labels}
    for (hashed, split), number in settled.counts.items():
        by_label[named[hashed]][SPLITS[split - 1]] = number
    return by_label


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def _description(shards: list[_Shard], settled: Settled, labels: list[str]) -> dict[str, Any]:
    entries = []
    for number, shard in enumerate(shards):
        kept = settled.keep[settled.starts[number] : settled.starts[number + 1]]
        counts = np.bincount(kept, minlength=4).tolist()
        # Where the store lies must not change what the dataset is.
        artifact = shard.artifact.model_copy(update={"uri": ""}).model_dump(mode="json")
        entries.append(
            {
                "artifact": artifact,
                "rows": shard.stats["rows"],
                "kept": dict(zip(SPLITS, counts[1:], strict=True)),
            }
        )
    return {"schema_version": 1, "labels": labels, "shards": entries}


def _report(
    store: Store,
    shards: list[_Shard],
    settled: Settled,
    rows: dict[str, int],
    by_label: dict[str, dict[str, int]] | None,
) -> dict[str, Any]:
    """The data report; without labels, that of rows for language models."""
    again = sum(shard.stats["rows"] * (shard.times - 1) for shard in shards)
    held_out = rows["validation"] + rows["test"]
    return {
        "schema_version": 1,
        "rows_read": int(settled.starts[-1]) + again,
        "rows": rows,
        **(_forms(shards) if by_label is None else {"labels": by_label}),
        "characters": _lengths(shards, "lengths"),
        "duplicates_dropped": settled.duplicates + again,
        "leaks_dropped": {split: settled.leaks[number + 1] for number, split in enumerate(SPLITS)},
        # Several labels of one text contradict each other; several answers do not.
        "several_answers" if by_label is None else "conflicts": {
            "inputs": settled.conflicts,
            "examples": [_conflict(store, shards, settled, each) for each in settled.conflict_rows],
        },
        "near_duplicates": {
            "estimate": sum(settled.near.values()),
            "of": held_out,
            "by_split": {name: settled.near[TRAIN + n] for n, name in enumerate(SPLITS) if n},
            "method": "validation and test examples that share a MinHash band (64 permutations, 8 "
            "bands, shingles of 3 words; Broder 1997) with a training example: likely where "
            "three quarters or more of the shingles are shared",
            "examples": [_pair(store, shards, settled, each) for each in settled.near_rows],
        },
    }


def _forms(shards: list[_Shard]) -> dict[str, Any]:
    """Rows by the form that they were recognised as, and the lengths of answers."""
    forms = Counter[str]()
    for shard in shards:
        forms.update({form: n * shard.times for form, n in shard.stats["forms"].items()})
    return {
        "forms": dict(sorted(forms.items())),
        "answer_characters": _lengths(shards, "answer_lengths"),
    }


def _lengths(shards: list[_Shard], name: str) -> dict[str, int]:
    """Percentiles of lengths in characters, each at most 1/16 too low; none of nothing."""
    bins = Counter[int]()
    for shard in shards:
        bins.update({int(n): count * shard.times for n, count in shard.stats[name].items()})
    if not bins:
        return {}
    numbers = sorted(bins)
    reached = np.cumsum([bins[number] for number in numbers])
    places = np.searchsorted(reached, [reached[-1] * percent / 100 for percent in _PERCENTILES])
    return {
        f"p{percent}": bin_start(numbers[place])
        for percent, place in zip(_PERCENTILES, places, strict=True)
    }


def _conflict(
    store: Store, shards: list[_Shard], settled: Settled, rows: tuple[int, ...]
) -> dict[str, Any]:
    name = "label" if "labels" in shards[0].stats else "answer"
    shown = rows if name == "label" else rows[:_MOST_ANSWERS]
    found = [_row(store, shards, settled, row) for row in shown]
    return {"text": found[0]["text"], f"{name}s": sorted(each[name] for each in found)}


def _pair(
    store: Store, shards: list[_Shard], settled: Settled, rows: tuple[int, int]
) -> dict[str, Any]:
    held, train = (_row(store, shards, settled, row) for row in rows)
    return {"split": SPLITS[settled.keep[rows[0]] - 1], "held_out": held, "train": train}


def _row(store: Store, shards: list[_Shard], settled: Settled, row: int) -> dict[str, str]:
    import pyarrow.parquet as pq

    shard, place = settled.place(row)
    path = store.file(shards[shard].artifact, "rows.parquet")
    column = "label" if "labels" in shards[shard].stats else "example"
    found = pq.read_table(path, columns=["text", column]).slice(place, 1).to_pylist()[0]
    if column == "label":
        return {"text": _excerpt(found["text"]), "label": found["label"]}
    answer = answer_of(orjson.loads(found["example"]))
    return {"text": _excerpt(found["text"]), "answer": _excerpt(answer)}


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def _label_warnings(data: DataRecipe, by_label: dict[str, dict[str, int]]) -> list[str]:
    found = []
    absent = [label for label, counts in by_label.items() if not counts["train"]]
    if absent:
        judged = [label for label in absent if by_label[label]["test"]]
        found.append(f"No training example has {_listed('label', absent)}")
        if judged:
            found.append(f"The test split has {_listed('label', judged)}, never seen in training")
    unused = sorted(set(data.labels) - set(by_label))
    if unused:
        found.append(f"data.labels names {_listed('label', unused)}, which no row has")
    return found


def _warnings(report: dict[str, Any]) -> list[str]:
    found = []
    leaks = sum(report["leaks_dropped"].values())
    if leaks:
        found.append(
            f"{leaks} examples were dropped because their inputs are also in a split that judges"
        )
    conflicts = report.get("conflicts", {"inputs": 0})["inputs"]
    if conflicts:
        found.append(f"{conflicts} inputs have more than one label")
    near, held = report["near_duplicates"]["estimate"], report["near_duplicates"]["of"]
    if near:
        found.append(
            f"{near} of {held} validation and test examples resemble a training example closely: "
            "results on them may flatter the model"
        )
    return found


def _listed(noun: str, names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the {noun}{'s' if len(names) > 1 else ''} {shown}{more}"
