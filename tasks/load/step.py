"""Load: read the data, cut it into shards by content, split it, and judge its quality.

Only pieces of files that were never seen are read (tasks/load/ingest.py). Then all rows are looked
at together, in flat memory (tasks/load/dedup.py): duplicates are collapsed, inputs that lie in two
splits are dropped from the one that learns, and what looks wrong is refused or reported.
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
from tasks.contracts.errors import BadData
from tasks.contracts.recipe_data import DataRecipe, Task
from tasks.contracts.results import Loaded
from tasks.load.data_report import Shard, data_report, data_warnings, label_warnings, rows_by_label
from tasks.load.dataset import read_split, write_examples
from tasks.load.dedup import Deduplicated, deduplicate, find_near
from tasks.load.ingest import LIBRARIES, Read, ingest
from tasks.load.read_settings import missing_column
from tasks.load.row_formats import CLASSES
from tasks.load.splits import TEST, TRAIN, VALIDATION, split_by_name
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.storage.store import Store, open_store

__all__ = ["TEST", "TRAIN", "VALIDATION", "LoadInputs", "load", "read_split", "write_examples"]


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


@step("load", result=Loaded, code=("tasks.load.step",), libraries=LIBRARIES)
def load(inputs: LoadInputs, context: RunContext) -> Loaded:
    """Read and split the data.

    Raises:
        BadData: They cannot be read, or cannot be trained on; with file and row.
        BadRecipe: The settings contradict each other.
        NotFound, NoAccess, HubFailed, StorageFailed: They cannot be fetched.
    """
    store = open_store(context.store)
    with store.scratch() as scratch:
        classes = inputs.task == CLASSES
        split_as = TEST if inputs.all_judge else 0
        found, new = ingest(inputs.data, inputs.source, context, scratch, inputs.task, split_as)
        shards = _distinct(store, found)
        rows = sum(shard.stats["rows"] * shard.times for shard in shards)
        run_logger().info("%d rows in %d shards, %d read anew", rows, len(shards), len(new))
        if classes:
            _check_labels(inputs.data, shards, found)
        _check_optional_columns(inputs, shards)
        indexes = [store.file(shard.artifact, "index.npy") for shard in shards]
        out = scratch / "dataset"
        out.mkdir()
        settled = deduplicate(indexes, out / "seen.npy", by_label=classes)
        bands = scratch / "bands"
        bands.mkdir()
        find_near([store.file(shard.artifact, "near.npy") for shard in shards], settled, bands)
        return _finish(inputs, store, shards, settled, len(new), out)


def _distinct(store: Store, found: list[Read]) -> list[Shard]:
    """The shards, each once, in an order that does not depend on the source's."""
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


def _check_labels(data: DataRecipe, shards: list[Shard], found: list[Read]) -> None:
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


def _first_row_with(label: str, shards: list[Shard], found: list[Read]) -> str:
    at = {
        shard.artifact.digest: shard.stats["labels"][label]["at"]
        for shard in shards
        if label in shard.stats["labels"]
    }
    return next(
        read.where(at[read.artifact.digest]) for read in found if read.artifact.digest in at
    )


def _check_optional_columns(inputs: LoadInputs, shards: list[Shard]) -> None:
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
    shards: list[Shard],
    settled: Deduplicated,
    new: int,
    out: Path,
) -> Loaded:
    rows = dict.fromkeys(SPLITS, 0)
    for (_, split), number in settled.counts.items():
        rows[SPLITS[split - 1]] += number
    if not inputs.all_judge:
        _check_splits(inputs.data, rows)
    by_label = rows_by_label(shards, settled) if inputs.task == CLASSES else None
    labels = sorted(by_label or ())
    report = data_report(store, shards, settled, rows, by_label)
    warnings = label_warnings(inputs.data, by_label) if by_label else []
    report["warnings"] = warnings = warnings + data_warnings(report)
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


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def _description(shards: list[Shard], settled: Deduplicated, labels: list[str]) -> dict[str, Any]:
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
