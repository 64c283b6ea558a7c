"""Fixtures for the tests of scoring: a model whose answers differ, benchmarks, an LLM judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tasks.chat.stop_tokens import stop_token_ids, training_tokenizer
from tasks.contracts.recipe_evaluation import LlmJudgeRecipe
from tasks.evaluate import llm_judge_client
from tasks.evaluate.llm_judge_step import LlmJudgeInputs, ask_llm_judge
from tasks.load.dataset import texts_by_hash
from tasks.load.splits import TEST
from tasks.storage.store import open_store
from tests.conftest import avoid_proxies
from tests.doubles.llm_judge import LlmJudgeServer
from tests.tasks.evaluate.samples import JUDGE_KEY, SHIP_ROWS
from tests.tasks.samples import SHIPS, load_data, run_context, some_rows, write_jsonl


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Run as programs do: without network access, in a working folder that may change."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ships_folder(tmp_path, offline):
    """A folder with a task file and its data."""
    home = tmp_path / "own"
    home.mkdir()
    (home / "ships.yaml").write_text(yaml.safe_dump(SHIPS))
    (home / "ships.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SHIP_ROWS))
    return home


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with an LLM judge that prefers the longer answer; retries follow at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JUDGE_KEY", JUDGE_KEY)
    monkeypatch.setattr(llm_judge_client, "BACKOFF", 0.01)
    avoid_proxies(monkeypatch)
    with LlmJudgeServer() as judge:
        yield judge


@pytest.fixture(scope="session")
def judge_data(tmp_path_factory):
    """A run context with data for completion."""
    where = run_context(tmp_path_factory.mktemp("data"))
    rows = [{"prompt": r["text"], "completion": r["label"]} for r in some_rows(150)]
    path = write_jsonl(tmp_path_factory.mktemp("rows") / "data.jsonl", rows)
    return where, load_data(path, where, "completion")


@pytest.fixture
def judge_dataset(judge_data, tmp_path):
    """A copy of the data, in which a test may cache replies."""
    where, loaded = judge_data
    shutil.copytree(where.store, tmp_path / "place" / "store")
    return run_context(tmp_path / "place"), loaded


@pytest.fixture
def judged(judge_dataset, server):
    """Compares answers; the candidate's are longer, shorter and equal in turn."""
    where, loaded = judge_dataset
    store = open_store(where.store)
    keys = sorted(texts_by_hash(where, loaded.artifact, TEST))

    def scores(answers):
        with store.scratch() as scratch:
            table = {
                "hash_hi": pa.array([hi for hi, _ in keys], pa.uint64()),
                "hash_lo": pa.array([lo for _, lo in keys], pa.uint64()),
                "answer": answers,
                "reference": ["tech"] * len(keys),
            }
            (scratch / "s").mkdir()
            pq.write_table(pa.table(table), scratch / "s" / "scores.parquet")
            return store.put("scores", scratch / "s")

    def run(ours=None, theirs=None, refresh=(), **changes):
        n = len(keys)
        judge = {"url": server.url, "model": "wise", "api_key_env": "JUDGE_KEY", **changes}
        inputs = LlmJudgeInputs(
            candidate=scores(ours or ["longer" if i % 3 == 0 else "same" for i in range(n)]),
            baseline=scores(theirs or ["longest" if i % 3 == 1 else "same" for i in range(n)]),
            test_digest=loaded.test_digest,
            dataset=loaded.artifact,
            llm_judge=LlmJudgeRecipe(**judge),
        )
        result = ask_llm_judge.work(inputs, where.model_copy(update={"refresh": refresh}))
        return result, pq.read_table(store.file(result.artifact, "comparisons.parquet"))

    run.store = Path(where.store)
    run.keys, run.texts = keys, texts_by_hash(where, loaded.artifact, TEST)
    return run


@pytest.fixture
def sharpened(tiny_lm, tmp_path):
    """The tiny model with larger weights, so that its answers differ and some end."""
    folder = tmp_path / "sharp"
    shutil.copytree(tiny_lm, folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(8)
    for name, tensor in weights.items():
        if "norm" not in name:
            weights[name] = 0.4 * torch.randn_like(tensor)
    # The end comes about every twentieth token.
    tokenizer = training_tokenizer(folder)
    embedding = weights["model.embed_tokens.weight"]
    embedding[stop_token_ids(tokenizer)[-1]] *= 3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
