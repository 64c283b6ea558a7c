"""Tokenize: the token ids of every shard, made once for each shard, tokenizer and length."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tasks.cache import Room, step
from tasks.contracts.artifact import Artifact, Tokenized
from tasks.contracts.base import Contract
from tasks.data.examples import dataset_shards
from tasks.memo import Memo
from tasks.process import run_program
from tasks.report import run_logger
from tasks.store import Store, open_store

LIBRARIES = ("tokenizers", "transformers", "pyarrow", "numpy")


class TokenizeInputs(Contract):
    """What to tokenize, with what.

    Attributes:
        dataset: The artifact of `Loaded`.
        tokenizer: A saved tokenizer.
        max_length: Tokens; longer texts are cut.
    """

    dataset: Artifact
    tokenizer: Artifact
    max_length: int


@step(
    "tokenize",
    result=Tokenized,
    code=("tasks.tokenize", "tasks.programs.tokenize"),
    libraries=LIBRARIES,
)
def tokenize(inputs: TokenizeInputs, room: Room) -> Tokenized:
    """Tokenize the shards whose tokens are not known yet.

    Raises:
        BadModel: The tokenizer cannot be used.
        OutOfHostMemory, Preempted, CodeFailed: The program ended without a result.
    """
    store = open_store(room.store)
    shards = dataset_shards(store, inputs.dataset)
    memo = Memo("tokens", "tokenize", room, ("tasks.programs.tokenize",), LIBRARIES)
    keys = {shard.digest: _key(memo, shard, inputs) for shard in shards}
    known = {digest: memo.get(key) for digest, key in keys.items()}
    missing = [shard for shard in shards if known[shard.digest] is None]
    run_logger().info("%d of %d shards are to be tokenized", len(missing), len(shards))
    with store.scratch() as scratch:
        if missing:
            made = _run(store, inputs, missing, scratch, memo, keys)
            known.update(made)
        tokens = {
            digest: Artifact.model_validate(record["artifact"]) for digest, record in known.items()
        }
        return _finish(store, inputs, tokens, len(missing), scratch)


def _key(memo: Memo, shard: Artifact, inputs: TokenizeInputs) -> str:
    return memo.key(
        {
            "shard": shard.digest,
            "tokenizer": inputs.tokenizer.digest,
            "max_length": inputs.max_length,
        }
    )


def _run(
    store: Store,
    inputs: TokenizeInputs,
    missing: list[Artifact],
    scratch: Path,
    memo: Memo,
    keys: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Have the program tokenize; each shard is stored as soon as it is done."""
    log = run_logger()
    made: dict[str, dict[str, Any]] = {}
    jobs = []
    for shard in missing:
        out = scratch / shard.digest
        out.mkdir()
        rows = store.file(shard, "rows.parquet")
        jobs.append({"digest": shard.digest, "rows": str(rows), "out": str(out)})

    def take(progress: dict[str, Any]) -> None:
        digest = progress["digest"]
        folder = scratch / digest
        record = {"artifact": store.put("shard-tokens", folder).model_dump(mode="json")}
        memo.put(keys[digest], record)
        made[digest] = record
        shutil.rmtree(folder)
        if progress["done"] * 10 // progress["total"] > (progress["done"] - 1) * 10 // len(missing):
            log.info("%d of %d shards tokenized", progress["done"], progress["total"])

    job = {
        "tokenizer": str(store.open(inputs.tokenizer)),
        "max_length": inputs.max_length,
        "shards": jobs,
    }
    run_program("tasks.programs.tokenize", job, scratch=scratch / "program", on_progress=take)
    return made


def _finish(
    store: Store,
    inputs: TokenizeInputs,
    tokens: dict[str, Artifact],
    new: int,
    scratch: Path,
) -> Tokenized:
    out = scratch / "tokens"
    out.mkdir()
    listed = {
        # Where the store lies must not change what the artifact is.
        digest: artifact.model_copy(update={"uri": ""}).model_dump(mode="json")
        for digest, artifact in sorted(tokens.items())
    }
    (out / "tokens.json").write_bytes(orjson.dumps(listed, option=orjson.OPT_INDENT_2))
    total = truncated = longest = 0
    with np.load(store.file(inputs.dataset, "keep.npz")) as keep:
        for digest, artifact in tokens.items():
            lengths = np.load(store.file(artifact, "lengths.npy"))[keep[digest] > 0]
            total += int(lengths[:, 0].sum())
            truncated += int((lengths[:, 1] > lengths[:, 0]).sum())
            longest = max(longest, int(lengths[:, 1].max(initial=0)))
    return Tokenized(
        artifact=store.put("tokens", out),
        shards=len(tokens),
        new_shards=new,
        tokens=total,
        truncated=truncated,
        longest=longest,
    )
