"""Tokenizes the texts of shards for classification.

Job: `TokenizeClassificationJob`. It writes two files to the folder `out` of each shard:

`tokens.parquet`, with the rows in the order of the shard: `hash_hi`, `hash_lo` (uint64), `label`,
`input_ids` (list of int32), `token_type_ids` (list of int8; only if the tokenizer produces them),
`length` (int32, tokens), `truncated` (bool);
`lengths.npy`: int32, shape (rows, 2): tokens after and before truncation.

After each shard it reports progress: `done`, `total`, `digest`.

The ids equal those of `AutoTokenizer(text, text_pair, truncation=True, max_length=…)`. For speed,
the underlying Rust tokenizer is called directly, and its ids go straight into Arrow buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.contracts.errors import BadModel
from tasks.contracts.jobs import Done, TokenizeClassificationJob
from tasks.runtime.program import Reporter, run

_BATCH_ROWS = 1024


def main(job: TokenizeClassificationJob, reporter: Reporter) -> Done:
    """Tokenize the shards; see the module docstring.

    Raises:
        BadModel: The tokenizer cannot be loaded, or has no fast version.
    """
    encoder = Encoder(job.tokenizer, job.max_length)
    for number, shard in enumerate(job.shards, 1):
        tokenize_shard(encoder, shard.rows, shard.out)
        reporter.progress(always=True, done=number, total=len(job.shards), digest=shard.digest)
    return Done()


class Encoder:
    """A fast tokenizer that truncates to a maximum length.

    Attributes:
        with_types: Whether the tokenizer produces token type ids.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            # With a damaged tokenizer.json, transformers may raise anything, even a KeyError.
            raise _bad_tokenizer(
                f"a tokenizer that cannot be loaded ({str(error)[:300]})"
            ) from error
        if not tokenizer.is_fast:
            raise _bad_tokenizer(f"a tokenizer without a fast version ({type(tokenizer).__name__})")
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.encode_special_tokens = tokenizer.split_special_tokens
        self._truncation = {"max_length": max_length, "direction": tokenizer.truncation_side}
        self._special_tokens = tokenizer.num_special_tokens_to_add(pair=False)
        self._backend.enable_truncation(**self._truncation)
        self.with_types = "token_type_ids" in tokenizer.model_input_names

    def encode(self, texts: list[str], pairs: list[str] | None) -> tuple[list[Any], np.ndarray]:
        """Encode texts on all cores.

        Args:
            texts: The texts.
            pairs: The second text of each pair; None for single texts.

        Returns:
            The encodings, and an int32 array of shape (texts, 2): tokens after and before
            truncation.
        """
        inputs = list(zip(texts, pairs, strict=True)) if pairs else texts
        # This variant is faster because it computes no character offsets.
        encodings = self._backend.encode_batch_fast(inputs)
        lengths = np.empty((len(encodings), 2), np.int32)
        lengths[:, 0] = [len(each) for each in encodings]
        lengths[:, 1] = (
            self._full_lengths(inputs, encodings)
            if pairs
            else [len(each) + self._overflow(each) for each in encodings]
        )
        return encodings, lengths

    def _overflow(self, encoding: Any) -> int:
        return sum(len(part) - self._special_tokens for part in encoding.overflowing)

    def _full_lengths(self, inputs: list[Any], encodings: list[Any]) -> list[int]:
        # A pair overflows into every combination of its parts, so their lengths do not add up.
        lengths = [len(each) for each in encodings]
        truncated = [number for number, each in enumerate(encodings) if each.overflowing]
        if truncated:
            self._backend.no_truncation()
            whole = self._backend.encode_batch_fast([inputs[number] for number in truncated])
            self._backend.enable_truncation(**self._truncation)
            for number, each in zip(truncated, whole, strict=True):
                lengths[number] = len(each)
        return lengths


def tokenize_shard(encoder: Encoder, rows: Path, out: Path) -> None:
    """Tokenize one shard.

    Args:
        encoder: The tokenizer.
        rows: The shard's `rows.parquet`.
        out: The folder to write to.
    """
    tables, lengths = [], [np.empty((0, 2), np.int32)]
    for batch, (encodings, measured) in _encode_batches(encoder, rows):
        # For single texts too: some models (GPT-2) compute something else without them, and they
        # are passed in serving.
        tables.append(_token_table(batch, encodings, measured, encoder.with_types))
        lengths.append(measured)
    pq.write_table(
        pa.concat_tables(tables).combine_chunks(),
        out / "tokens.parquet",
        compression="zstd",
        use_dictionary=["label"],
        write_statistics=False,
    )
    np.save(out / "lengths.npy", np.concatenate(lengths))


def _encode_batches(encoder: Encoder, rows: Path) -> Iterator[tuple[pa.RecordBatch, Any]]:
    """Yield batches with their encodings, and encode the next batch in the meantime."""

    def start(batch: pa.RecordBatch) -> Future:
        columns = batch.to_pydict()
        return pool.submit(encoder.encode, columns["text"], columns.get("text_pair"))

    with pq.ParquetFile(rows) as file, ThreadPoolExecutor(1) as pool:
        names = ("hash_hi", "hash_lo", "text", "text_pair", "label")
        columns = [name for name in names if name in file.schema_arrow.names]
        pending = None
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            started = batch, start(batch)
            if pending:
                yield pending[0], pending[1].result()
            pending = started
        if pending:
            yield pending[0], pending[1].result()


def _token_table(
    batch: pa.RecordBatch, encodings: list[Any], lengths: np.ndarray, with_types: bool
) -> pa.Table:
    after, before = lengths[:, 0], lengths[:, 1]
    columns = {
        "hash_hi": batch.column("hash_hi"),
        "hash_lo": batch.column("hash_lo"),
        "label": batch.column("label").cast(pa.string()).dictionary_encode(),
        "input_ids": _list_array((each.ids for each in encodings), after, np.int32),
    }
    if with_types:
        columns["token_type_ids"] = _list_array(
            (each.type_ids for each in encodings), after, np.int8
        )
    columns["length"] = pa.array(after)
    columns["truncated"] = pa.array(before > after)
    return pa.table(columns)


def _list_array(values: Iterator[list[int]], lengths: np.ndarray, kind: type) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    flat = np.fromiter(chain.from_iterable(values), kind, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _bad_tokenizer(found: str) -> BadModel:
    return BadModel(
        "model.uri",
        found,
        "a tokenizer that loads without remote code",
        "save it again with AutoTokenizer.from_pretrained(…).save_pretrained(…)",
    )


if __name__ == "__main__":
    run(main, TokenizeClassificationJob)
