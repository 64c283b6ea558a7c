"""Tokenize the shards of a dataset, once per shard, tokenizer and maximum length."""

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
_SAMPLE_ROWS = 3
_LEFT_OUT_REASON = {
    "truncate": "their first {length:,} tokens contain no target token (training.max_length)",
    "drop": "they are longer than {length:,} tokens (training.max_length, training.too_long: drop)",
    "split": "none of their parts has a target token",
}


class TokenizeInputs(Contract):
    """What to tokenize, and how.

    Attributes:
        dataset: The dataset's artifact.
        tokenizer: The saved tokenizer.
        max_length: Maximum length in tokens.
        task: The task that the model is trained for.
        too_long: What happens to longer examples of a language model. Texts to classify are always
            truncated.
    """

    dataset: Artifact
    tokenizer: Artifact
    max_length: int
    task: Task = "text-classification"
    too_long: TooLong = "truncate"

    @property
    def program(self) -> str:
        """The program that tokenizes for the task."""
        if self.task == "text-classification":
            return "tasks.tokenize.classification_program"
        return "tasks.tokenize.language_program"

    @property
    def settings(self) -> dict[str, Any]:
        """The job's fields other than paths."""
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
        classification = self.task == "text-classification"
        job = TokenizeClassificationJob if classification else TokenizeLanguageJob
        return job(tokenizer=tokenizer, shards=tuple(shards), **self.settings)

    def key_part(self) -> dict[str, Any]:
        """Return the inputs that decide the result: for a classifier, all but `too_long`."""
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
    """Tokenize the shards that have not been tokenized before.

    Raises:
        BadModel: The tokenizer, or its chat template, cannot be used.
        BadData: An example has no target tokens, or no example is left to train on.
        BadRecipe: The recipe splits long preference pairs.
        OutOfHostMemory, Preempted, CodeFailed: The program ended without a result.
    """
    store = open_store(context.store)
    shards = dataset_shards(store, inputs.dataset)
    substeps = SubstepCache("tokens", "tokenize", context, (inputs.program,), LIBRARIES)
    keys = {shard.digest: _shard_key(substeps, shard, inputs) for shard in shards}
    records = {digest: substeps.get(key) for digest, key in keys.items()}
    missing = [shard for shard in shards if records[shard.digest] is None]
    run_logger().info("%d of %d shards need tokenizing", len(missing), len(shards))
    with store.scratch() as scratch:
        if missing:
            records |= _tokenize_shards(store, inputs, missing, scratch, substeps, keys)
        tokens = {
            digest: Artifact.model_validate(record["artifact"])
            for digest, record in records.items()
        }
        return _store_tokens(store, inputs, tokens, len(missing), scratch)


def token_samples(tokenized: Tokenized, context: RunContext) -> list[dict[str, Any]]:
    """Return the first training examples of a language model, in segments of targets and context.

    Returns:
        One record per sequence, as in `samples.json` (`tasks.tokenize.language_program`).
    """
    store = open_store(context.store)
    return orjson.loads(store.file(tokenized.artifact, "samples.json").read_bytes())


def _shard_key(substeps: SubstepCache, shard: Artifact, inputs: TokenizeInputs) -> str:
    return substeps.key(
        {"shard": shard.digest, "tokenizer": inputs.tokenizer.digest, **inputs.settings}
    )


def _tokenize_shards(
    store: Store,
    inputs: TokenizeInputs,
    missing: list[Artifact],
    scratch: Path,
    substeps: SubstepCache,
    keys: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Run the program, and store each shard as soon as it is done.

    Returns:
        The records of the substep cache, by shard digest.
    """
    log = run_logger()
    records: dict[str, dict[str, Any]] = {}
    work: list[RowShard] = []
    for shard in missing:
        out = scratch / shard.digest
        out.mkdir()
        rows = store.file(shard, "rows.parquet")
        work.append(RowShard(digest=shard.digest, rows=rows, out=out))

    def store_shard(progress: dict[str, Any]) -> None:
        digest = progress["digest"]
        folder = scratch / digest
        record = {"artifact": store.put("shard-tokens", folder).model_dump(mode="json")}
        substeps.put(keys[digest], record)
        records[digest] = record
        shutil.rmtree(folder)
        if progress["done"] * 10 // progress["total"] > (progress["done"] - 1) * 10 // len(missing):
            log.info("%d of %d shards tokenized", progress["done"], progress["total"])

    run_program(
        inputs.program,
        inputs.job(store.open(inputs.tokenizer), work),
        Done,
        scratch=scratch / "program",
        on_progress=store_shard,
    )
    return records


def _store_tokens(
    store: Store,
    inputs: TokenizeInputs,
    tokens: dict[str, Artifact],
    new: int,
    scratch: Path,
) -> Tokenized:
    out = scratch / "tokens"
    out.mkdir()
    listed = {
        # The artifact's digest must not depend on where the store is.
        digest: artifact.model_copy(update={"uri": ""}).model_dump(mode="json")
        for digest, artifact in sorted(tokens.items())
    }
    (out / "tokens.json").write_bytes(orjson.dumps(listed, option=orjson.OPT_INDENT_2))
    if inputs.task == "text-classification":
        facts = _classification_facts(store, inputs, tokens)
    else:
        facts, samples = _language_facts(store, inputs, tokens)
        (out / "samples.json").write_bytes(orjson.dumps(samples, option=orjson.OPT_INDENT_2))
    return Tokenized(artifact=store.put("tokens", out), shards=len(tokens), new_shards=new, **facts)


def _shard_lengths(
    store: Store, inputs: TokenizeInputs, tokens: dict[str, Artifact]
) -> Iterator[tuple[Artifact, np.ndarray, np.ndarray]]:
    """Yield each shard's tokens, and for each of its rows the split (0: dropped) and the lengths
    (as in `lengths.npy`)."""
    with np.load(store.file(inputs.dataset, "keep.npz")) as keep:
        for digest, artifact in tokens.items():
            yield artifact, keep[digest], np.load(store.file(artifact, "lengths.npy"))


def _classification_facts(
    store: Store, inputs: TokenizeInputs, tokens: dict[str, Artifact]
) -> dict[str, Any]:
    total = truncated = longest = 0
    for _, splits, measured in _shard_lengths(store, inputs, tokens):
        lengths = measured[splits > 0]
        total += int(lengths[:, 0].sum())
        truncated += int((lengths[:, 1] > lengths[:, 0]).sum())
        longest = max(longest, int(lengths[:, 1].max(initial=0)))
    return {"tokens": total, "truncated": truncated, "longest": longest}


def _language_facts(
    store: Store, inputs: TokenizeInputs, tokens: dict[str, Artifact]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return facts about the rows in use, and samples of the first training rows by hash."""
    facts = dict.fromkeys(("tokens", "target_tokens", "truncated", "left_out", "longest"), 0)
    rows = {TRAIN: 0, VALIDATION: 0}
    remaining, total, differing = dict(rows), 0, 0
    candidates: list[tuple[str, str, dict[str, Any]]] = []
    for artifact, splits, measured in _shard_lengths(store, inputs, tokens):
        samples = orjson.loads(store.file(artifact, "samples.json").read_bytes())
        candidates += [
            (sample["hash"], artifact.digest, sample)
            for sample in samples
            if splits[sample["row"]] == TRAIN
        ]
        for split in rows:
            rows[split] += int((splits == split).sum())
            remaining[split] += int(((splits == split) & (measured[:, 0] > 0)).sum())
        kept, _, targets, longest, unserved = measured[splits > 0].T.astype(np.int64)
        facts["tokens"] += int(kept.sum())
        facts["target_tokens"] += int(targets.sum())
        facts["truncated"] += int(((kept > 0) & (longest > inputs.max_length)).sum())
        facts["left_out"] += int((kept == 0).sum())
        facts["longest"] = max(facts["longest"], int(longest.max(initial=0)))
        total += len(kept)
        differing += int((unserved[kept > 0] > 0).sum())
    _refuse_empty_splits(inputs, rows, remaining, facts["longest"])
    warnings: tuple[str, ...] = ()
    if facts["left_out"]:
        reason = _left_out_reason(inputs)
        warnings += (f"{facts['left_out']:,} of {total:,} examples are left out: {reason}",)
    if differing:
        warnings += (
            f"{differing:,} of {total:,} examples have an answer that changes the last tokens of "
            "its prompt, so they are trained differently from how they are served: end prompts, "
            "and the chat template's generation prompt, without a space or line break",
        )
    return {**facts, "warnings": warnings}, _first_samples(candidates)


def _left_out_reason(inputs: TokenizeInputs) -> str:
    reason = _LEFT_OUT_REASON[inputs.too_long].format(length=inputs.max_length)
    if inputs.task == "preference":
        reason += ", or both answers of a pair are the same tokens"
    return reason


def _refuse_empty_splits(
    inputs: TokenizeInputs, rows: dict[int, int], remaining: dict[int, int], longest: int
) -> None:
    for split, name in ((TRAIN, "training"), (VALIDATION, "validation")):
        if rows[split] and not remaining[split]:
            raise BadData(
                "training.max_length",
                f"no {name} examples left of {rows[split]:,}: " + _left_out_reason(inputs),
                f"a limit that the examples fit within (the longest has {longest:,} tokens)",
                "raise training.max_length, or shorten the prompts",
            )


def _first_samples(candidates: list[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the samples of the first rows by hash, whatever the order of the shards."""
    ordered = sorted(
        candidates, key=lambda item: (item[0], item[1], item[2]["row"], item[2]["side"])
    )
    rows = list(dict.fromkeys((shard, sample["row"]) for _, shard, sample in ordered))
    first = rows[:_SAMPLE_ROWS]
    return [sample for _, shard, sample in ordered if (shard, sample["row"]) in first]
