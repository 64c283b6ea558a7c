"""The load step: reads the data into shards, splits and deduplicates it, and checks its quality.

Only chunks that were never seen before are read (tasks/load/ingest.py). Then all rows are compared
in bounded memory (tasks/load/dedup.py): duplicates are dropped, inputs that occur in two splits
stay in the stricter one only, and problems are refused or reported.
"""

from __future__ import annotations

import difflib
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import orjson

from tasks.contracts.artifacts import SPLITS, Source
from tasks.contracts.base import Contract
from tasks.contracts.errors import BadData, EmptyValue
from tasks.contracts.recipe_data import DataRecipe, Task
from tasks.contracts.results import Loaded
from tasks.load.data_report import (
    Shard,
    conflict_examples,
    data_report,
    data_warnings,
    label_warnings,
    rows_per_label,
)
from tasks.load.dedup import Conflicts, Deduplicated, deduplicate, find_near_duplicates
from tasks.load.ingest import LIBRARIES, SourceShard, ingest
from tasks.load.labels import is_fraction
from tasks.load.read_settings import missing_column
from tasks.load.readers import EMPTY_EXAMPLES
from tasks.load.row_formats import CLASSIFICATION
from tasks.load.splits import TEST, split_by_name
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.storage.store import Store, open_store


class LoadInputs(Contract):
    """The data and how to read them.

    Attributes:
        data: The recipe's settings; the `uri` is not in the cache key.
        source: The files. Their contents are in the cache key; names only as far as they decide a
            label, a split or a format.
        task: What the rows are for.
        all_test: Whether every row is a test example, whatever `data.split` says.
    """

    data: DataRecipe
    source: Source
    task: Task = CLASSIFICATION
    all_test: bool = False

    def key_part(self) -> dict[str, Any]:
        """Return the settings and contents. A moved or renamed file is the same content, unless its
        name decides a label, a split or a format."""
        contents = sorted(
            [file.digest, file.size, *self._meaning_of_name(PurePosixPath(file.path))]
            for file in self.source.files
        )
        key = {"data": self.data.key_part(), "contents": contents, "task": self.task}
        return {**key, "all_test": True} if self.all_test else key

    def _meaning_of_name(self, path: PurePosixPath) -> list[Any]:
        labelled = self.data.format == "text-folders" and self.task == CLASSIFICATION
        return [
            path.suffix.lower(),
            path.parent.name if labelled else "",
            split_by_name(str(path)) if self.data.split.by == "files" else 0,
        ]


@step("load", result=Loaded, code=("tasks.load.step",), libraries=LIBRARIES)
def load(inputs: LoadInputs, context: RunContext) -> Loaded:
    """Read, split and deduplicate the data.

    Raises:
        BadData: The data cannot be read or used; the error names file and row.
        BadRecipe: The settings contradict each other.
        NotFound, NoAccess, HubFailed, StorageFailed: The data cannot be fetched.
    """
    store = open_store(context.store)
    with store.scratch() as scratch:
        labelled = inputs.task == CLASSIFICATION
        fixed_split = TEST if inputs.all_test else 0
        found, new = ingest(inputs.data, inputs.source, context, scratch, inputs.task, fixed_split)
        shards = _distinct(store, found)
        rows = sum(shard.stats["rows"] * shard.times for shard in shards)
        run_logger().info("%d rows in %d shards, %d of them new", rows, len(shards), len(new))
        _check_empty(inputs.data, shards, found)
        if labelled:
            _check_labels(inputs.data, shards, found)
        _check_optional_columns(inputs, shards)
        indexes = [store.file(shard.artifact, "index.npy") for shard in shards]
        out = scratch / "dataset"
        out.mkdir()
        dedup = deduplicate(
            indexes,
            out / "seen.npy",
            count_labels=labelled,
            conflicts=_conflict_policy(inputs),
        )
        bands = scratch / "bands"
        bands.mkdir()
        find_near_duplicates(
            [store.file(shard.artifact, "near.npy") for shard in shards], dedup, bands
        )
        return _finish(inputs, store, shards, dedup, len(new), out)


def _conflict_policy(inputs: LoadInputs) -> Conflicts:
    policy = inputs.data.conflicts
    # Several answers to one input are no conflict. What is refused is refused with the report.
    return "keep" if inputs.task != CLASSIFICATION or policy == "refuse" else policy


def _distinct(store: Store, found: list[SourceShard]) -> list[Shard]:
    """Return each shard once, in an order that does not depend on the source."""
    times = Counter(read.artifact.digest for read in found)
    artifacts = {read.artifact.digest: read.artifact for read in found}
    return [
        Shard(
            artifacts[digest],
            times[digest],
            orjson.loads(store.file(artifacts[digest], "stats.json").read_bytes()),
        )
        for digest in sorted(artifacts)
    ]


# Checks


def _check_empty(data: DataRecipe, shards: list[Shard], found: list[SourceShard]) -> None:
    """Refuse empty rows, all at once; with `data.empty: skip`, only if there are no others."""
    empty = sum(shard.stats["empty"]["rows"] * shard.times for shard in shards)
    if not empty or (data.empty == "skip" and any(shard.stats["rows"] for shard in shards)):
        return
    first = {shard.artifact.digest: shard.stats["empty"]["first"] for shard in shards}
    places = [
        (read.where(position), missing)
        for read in found
        for position, missing in first[read.artifact.digest]
    ]
    where, missing = places[0]
    if empty > 1:
        others = [place for place, _ in places[1:EMPTY_EXAMPLES]]
        more = ", …" if empty > len(others) + 1 else ""
        missing += f", and {empty - 1:,} other empty rows: {', '.join(others)}{more}"
    raise EmptyValue(
        where,
        missing,
        "a text and a label or answer in every row",
        f"fill in or remove the row{'s' if empty > 1 else ''}"
        + (", or set data.empty to skip" if data.empty == "refuse" else ""),
    )


def _check_labels(data: DataRecipe, shards: list[Shard], found: list[SourceShard]) -> None:
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
    _refuse_regression(data, counts, shards, found)
    if len(counts) < 2:
        raise BadData(
            "data.label",
            f"only one label, {next(iter(counts))!r}",
            "at least two labels",
            f"check that {data.label!r} is the column of classes, or add rows of another class",
        )
    if len(counts) > 50 and len(counts) > counts.total() / 2:
        raise BadData(
            "data.label",
            f"{len(counts)} different labels in {counts.total()} rows",
            "classes with several rows each",
            f"check that {data.label!r} is the column of classes",
        )


def _refuse_regression(
    data: DataRecipe, counts: Counter[str], shards: list[Shard], found: list[SourceShard]
) -> None:
    fractions = [label for label in counts if is_fraction(label) and label not in data.labels]
    if not fractions:
        return
    label = min(fractions, key=float)
    raise BadData(
        _first_row_with(label, shards, found),
        f"the label {label!r}, a decimal number like {len(fractions)} of {len(counts)} labels",
        "classes; a number to predict (regression) is not one of them",
        "set data.label to the column of classes; if these numbers are classes, list all labels "
        "in data.labels",
    )


def _first_row_with(label: str, shards: list[Shard], found: list[SourceShard]) -> str:
    at = {
        shard.artifact.digest: shard.stats["labels"][label]["at"]
        for shard in shards
        if label in shard.stats["labels"]
    }
    return next(
        read.where(at[read.artifact.digest]) for read in found if read.artifact.digest in at
    )


def _check_optional_columns(inputs: LoadInputs, shards: list[Shard]) -> None:
    """Refuse optional columns that no row has: the recipe probably misspells them."""
    data = inputs.data
    optional = {name: "data.keep_columns" for name in data.keep_columns if name != data.label}
    if data.split.group_by:
        optional[data.split.group_by] = "data.split.group_by"
    for name, setting in optional.items():
        if not any(shard.stats["present"].get(name) for shard in shards):
            columns = {column: None for shard in shards for column in shard.stats["columns"]}
            where = f"data.uri {inputs.source.uri}"
            without = "[]" if setting == "data.keep_columns" else '""'
            raise missing_column(where, name, setting, columns, without)


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
        remedy = f"check that {data.split.group_by!r} has many values, or remove group_by"
    raise BadData(
        f"data.split.{data.split.column or data.split.by}",
        f"no rows for {' and '.join(empty)} ({counted}, after deduplication)",
        "rows in train, validation and test",
        remedy,
    )


def _conflicting_labels(inputs: int, examples: list[dict[str, Any]]) -> BadData:
    listed = "; ".join(
        f"{example['text']!r} ({', '.join(map(repr, example['labels']))})" for example in examples
    )
    return BadData(
        "data.conflicts",
        f"{inputs:,} text{'' if inputs == 1 else 's'} with more than one label, such as {listed}",
        "one label per text",
        "correct the rows, or set data.conflicts to drop or keep-train",
    )


# The artifact


def _finish(
    inputs: LoadInputs,
    store: Store,
    shards: list[Shard],
    dedup: Deduplicated,
    new: int,
    out: Path,
) -> Loaded:
    rows = dict.fromkeys(SPLITS, 0)
    for (_, split), number in dedup.counts.items():
        rows[SPLITS[split - 1]] += number
    conflicts = dedup.conflicts if inputs.task == CLASSIFICATION else 0
    if conflicts and inputs.data.conflicts == "refuse":
        raise _conflicting_labels(conflicts, conflict_examples(store, shards, dedup))
    if not inputs.all_test:
        _check_splits(inputs.data, rows)
    label_counts = rows_per_label(shards, dedup) if inputs.task == CLASSIFICATION else None
    labels = sorted(label_counts or ())
    report = data_report(store, shards, dedup, rows, label_counts)
    warnings = label_warnings(inputs.data, label_counts) if label_counts else []
    report["warnings"] = warnings = warnings + data_warnings(report)
    _write(out / "report.json", report)
    _write(out / "dataset.json", _description(shards, dedup, labels))
    keep = {
        shard.artifact.digest: dedup.keep[dedup.starts[number] : dedup.starts[number + 1]]
        for number, shard in enumerate(shards)
    }
    np.savez(out / "keep.npz", **keep)
    artifact = store.put("dataset", out)
    shutil.rmtree(out)
    return Loaded(
        artifact=artifact,
        labels=tuple(labels),
        rows=rows,
        test_digest=dedup.test_digest,
        new_shards=new,
        shards=len(shards),
        warnings=tuple(warnings),
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def _description(shards: list[Shard], dedup: Deduplicated, labels: list[str]) -> dict[str, Any]:
    entries = []
    for number, shard in enumerate(shards):
        kept = dedup.keep[dedup.starts[number] : dedup.starts[number + 1]]
        counts = np.bincount(kept, minlength=4).tolist()
        # The location of the store must not change the dataset's digest.
        artifact = shard.artifact.model_copy(update={"uri": ""}).model_dump(mode="json")
        entries.append(
            {
                "artifact": artifact,
                "rows": shard.stats["rows"],
                "kept": dict(zip(SPLITS, counts[1:], strict=True)),
            }
        )
    return {"schema_version": 1, "labels": labels, "shards": entries}
