"""Tokenize the shards of a dataset, once per shard, tokenizer and length."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.errors import BadData
from tasks.contracts.jobs import (
    Done,
    RowShard,
    TokenizeClassificationJob,
    TokenizeLanguageJob,
    TooLong,
)
from tasks.contracts.recipe_data import Task
from tasks.contracts.results import Tokenized
from tasks.load.dataset import dataset_shards
from tasks.load.splits import TRAIN, VALIDATION
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.run_program import run_program
from tasks.runtime.substep_cache import SubstepCache
from tasks.storage.store import Store, open_store

LIBRARIES = ("tokenizers", "transformers", "jinja2", "pyarrow", "numpy")
_SAMPLES = 3
_WHY_LEFT_OUT = {
    "truncate": "no token of their answers is within the first {length:,} tokens "
    "(training.max_length)",
    "drop": "they are longer than {length:,} tokens (training.max_length, training.too_long: drop)",
    "split": "they have no target tokens",
}


class TokenizeInputs(Contract):
    """What to tokenize, and how.

    Attributes:
        dataset: The artifact of `Loaded`.
        tokenizer: A saved tokenizer.
        max_length: Tokens; longer texts are truncated.
        task: The task that the model is trained for.
        too_long: How longer examples of a language model are handled: `truncate`, `drop`, `split`.
    """

    dataset: Artifact
    tokenizer: Artifact
    max_length: int
    task: Task = "text-classification"
    too_long: TooLong = "truncate"

    @property
    def program(self) -> str:
        """The program's module."""
        language = self.task != "text-classification"
        return (
            "tasks.tokenize.language_program"
            if language
            else "tasks.tokenize.classification_program"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the job that does not depend on where files are."""
        if self.task == "text-classification":
            return {"max_length": self.max_length}
        return {"max_length": self.max_length, "task": self.task, "too_long": self.too_long}

    def job(
        self, tokenizer: Path, shards: list[RowShard]
    ) -> TokenizeClassificationJob | TokenizeLanguageJob:
        """Return the program's job.

        Args:
            tokenizer: The tokenizer's folder.
            shards: The shards to tokenize.
        """
        classes = self.task == "text-classification"
        job = TokenizeClassificationJob if classes else TokenizeLanguageJob
        return job(tokenizer=tokenizer, shards=tuple(shards), **self.settings)

    def key_part(self) -> dict[str, Any]:
        """Return the inputs that decide the result; `too_long` does not for a classifier."""
        part = super().key_part()
        if self.task == "text-classification":
            del part["too_long"]
        return part


@step(
    "tokenize",
    result=Tokenized,
    code=(
        "tasks.tokenize.step",
        "tasks.tokenize.classification_program",
        "tasks.tokenize.language_program",
    ),
    libraries=LIBRARIES,
)
def tokenize(inputs: TokenizeInputs, context: RunContext) -> Tokenized:
    """Tokenize the shards that were not tokenized before.

    Raises:
        BadModel: The tokenizer, or its chat template, cannot be used.
        BadData: An example has no target tokens, or no example is left to train on.
        BadRecipe: The recipe splits preference pairs.
        OutOfHostMemory, Preempted, CodeFailed: The program ended without a result.
    """
    store = open_store(context.store)
    shards = dataset_shards(store, inputs.dataset)
    substeps = SubstepCache("tokens", "tokenize", context, (inputs.program,), LIBRARIES)
    keys = {shard.digest: _key(substeps, shard, inputs) for shard in shards}
    known = {digest: substeps.get(key) for digest, key in keys.items()}
    missing = [shard for shard in shards if known[shard.digest] is None]
    run_logger().info("%d of %d shards need tokenizing", len(missing), len(shards))
    with store.scratch() as scratch:
        if missing:
            made = _run(store, inputs, missing, scratch, substeps, keys)
            known.update(made)
        tokens = {
            digest: Artifact.model_validate(record["artifact"]) for digest, record in known.items()
        }
        return _finish(store, inputs, tokens, len(missing), scratch)


def token_samples(tokenized: Tokenized, context: RunContext) -> list[dict[str, Any]]:
    """Return the first training examples of a language model, split into targets and context."""
    store = open_store(context.store)
    return orjson.loads(store.file(tokenized.artifact, "samples.json").read_bytes())


def _key(substeps: SubstepCache, shard: Artifact, inputs: TokenizeInputs) -> str:
    return substeps.key(
        {
            "shard": shard.digest,
            "tokenizer": inputs.tokenizer.digest,
            **inputs.settings,
        }
    )


def _run(
    store: Store,
    inputs: TokenizeInputs,
    missing: list[Artifact],
    scratch: Path,
    substeps: SubstepCache,
    keys: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Run the program; each shard is stored as soon as it is done."""
    log = run_logger()
    made: dict[str, dict[str, Any]] = {}
    work: list[RowShard] = []
    for shard in missing:
        out = scratch / shard.digest
        out.mkdir()
        rows = store.file(shard, "rows.parquet")
        work.append(RowShard(digest=shard.digest, rows=rows, out=out))

    def take(progress: dict[str, Any]) -> None:
        digest = progress["digest"]
        folder = scratch / digest
        record = {"artifact": store.put("shard-tokens", folder).model_dump(mode="json")}
        substeps.put(keys[digest], record)
        made[digest] = record
        shutil.rmtree(folder)
        if progress["done"] * 10 // progress["total"] > (progress["done"] - 1) * 10 // len(missing):
            log.info("%d of %d shards tokenized", progress["done"], progress["total"])

    run_program(
        inputs.program,
        inputs.job(store.open(inputs.tokenizer), work),
        Done,
        scratch=scratch / "program",
        on_progress=take,
    )
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
        # The store's location must not change the artifact's digest.
        digest: artifact.model_copy(update={"uri": ""}).model_dump(mode="json")
        for digest, artifact in sorted(tokens.items())
    }
    (out / "tokens.json").write_bytes(orjson.dumps(listed, option=orjson.OPT_INDENT_2))
    if inputs.task == "text-classification":
        facts = _classes(store, inputs, tokens)
    else:
        facts, samples = _language(store, inputs, tokens)
        (out / "samples.json").write_bytes(orjson.dumps(samples, option=orjson.OPT_INDENT_2))
    return Tokenized(artifact=store.put("tokens", out), shards=len(tokens), new_shards=new, **facts)


def _shard_lengths(
    store: Store, inputs: TokenizeInputs, tokens: dict[str, Artifact]
) -> Iterator[tuple[Artifact, np.ndarray, np.ndarray]]:
    """Yield each shard's tokens, the split of each row, and the lengths of each row."""
    with np.load(store.file(inputs.dataset, "keep.npz")) as keep:
        for digest, artifact in tokens.items():
            yield artifact, keep[digest], np.load(store.file(artifact, "lengths.npy"))


def _classes(store: Store, inputs: TokenizeInputs, tokens: dict[str, Artifact]) -> dict[str, Any]:
    total = truncated = longest = 0
    for _, keep, measured in _shard_lengths(store, inputs, tokens):
        lengths = measured[keep > 0]
        total += int(lengths[:, 0].sum())
        truncated += int((lengths[:, 1] > lengths[:, 0]).sum())
        longest = max(longest, int(lengths[:, 1].max(initial=0)))
    return {"tokens": total, "truncated": truncated, "longest": longest}


def _language(
    store: Store, inputs: TokenizeInputs, tokens: dict[str, Artifact]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return facts about the kept rows, and the first training rows by hash."""
    facts = dict.fromkeys(("tokens", "target_tokens", "truncated", "left_out", "longest"), 0)
    rows = {TRAIN: 0, VALIDATION: 0}
    left, total = dict(rows), 0
    candidates: list[tuple[str, str, dict[str, Any]]] = []
    for artifact, keep, measured in _shard_lengths(store, inputs, tokens):
        shown = orjson.loads(store.file(artifact, "samples.json").read_bytes())
        candidates += [
            (each["hash"], artifact.digest, each) for each in shown if keep[each["row"]] == TRAIN
        ]
        for split in rows:
            rows[split] += int((keep == split).sum())
            left[split] += int(((keep == split) & (measured[:, 0] > 0)).sum())
        kept, _, targets, longest = measured[keep > 0].T.astype(np.int64)
        facts["tokens"] += int(kept.sum())
        facts["target_tokens"] += int(targets.sum())
        facts["truncated"] += int(((kept > 0) & (longest > inputs.max_length)).sum())
        facts["left_out"] += int((kept == 0).sum())
        facts["longest"] = max(facts["longest"], int(longest.max(initial=0)))
        total += len(kept)
    _refuse_empty_splits(inputs, rows, left, facts["longest"])
    warnings = ()
    if facts["left_out"]:
        why = _WHY_LEFT_OUT[inputs.too_long].format(length=inputs.max_length)
        warnings = (f"{facts['left_out']:,} of {total:,} examples are left out: {why}",)
    return {**facts, "warnings": warnings}, _first_samples(candidates)


def _refuse_empty_splits(
    inputs: TokenizeInputs, rows: dict[int, int], left: dict[int, int], longest: int
) -> None:
    for split, name in ((TRAIN, "training"), (VALIDATION, "validation")):
        if rows[split] and not left[split]:
            raise BadData(
                "training.max_length",
                f"no {name} example left of {rows[split]:,}: "
                + _WHY_LEFT_OUT[inputs.too_long].format(length=inputs.max_length),
                f"a limit that the examples fit in (the longest has {longest:,} tokens)",
                "raise training.max_length, or shorten the prompts",
            )


def _first_samples(candidates: list[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the sequences of the first rows by hash, independent of the order of the shards."""
    ordered = sorted(
        candidates, key=lambda item: (item[0], item[1], item[2]["row"], item[2]["side"])
    )
    rows = list(dict.fromkeys((shard, each["row"]) for _, shard, each in ordered))[:_SAMPLES]
    return [each for _, shard, each in ordered if (shard, each["row"]) in rows]
