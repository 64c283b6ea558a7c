"""Tokenizes the examples of shards for a language model.

Job: `TokenizeLanguageJob`. The folder `out` of each shard gets

`tokens.parquet`: `row` (uint32: the row within the shard; absent if it was left out, repeated if it
was split into several sequences), `side` (uint8: 0; for preference pairs 0 is chosen and 1 is
rejected, in that order), `hash_hi`, `hash_lo` (uint64), `input_ids` (list of int32), `loss_mask`
(list of uint8 of the same lengths: 1 where the token is a target of the loss), `length` (int32,
tokens), `truncated` (bool: the sequence is part of a longer one);
`lengths.npy`: int32, shape (rows of the shard, 4): tokens kept (of all parts and sides; 0 if the
row was left out), tokens before truncation, target tokens kept, and tokens of the row's longest
sequence before truncation;
`samples.json`: the kept rows with the smallest hashes, for the report: a list, ordered by hash, of
`hash` (32 hexadecimal digits), `row`, `side`, and `segments`, a list of `target` (bool) and `text`.

A progress line follows each shard: `done`, `total`, `digest`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, groupby
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.chat.encoder import Encoded, ExampleEncoder, check_loss_mask
from tasks.chat.rendering import Rendering
from tasks.chat.stop_tokens import training_tokenizer
from tasks.contracts.errors import BadData, BadRecipe, BurnishError
from tasks.contracts.jobs import Done, RowShard, TokenizeLanguageJob
from tasks.runtime.program import Reporter, run

_ROWS_AT_ONCE = 512
_COLUMNS = ("text", "example", "hash_hi", "hash_lo")
_EXCERPT = 80
# More than the report shows, since it shows training rows only and the split is not known here.
_SAMPLES = 12
_MAX_SEGMENT_CHARACTERS = 2000


class Sequence(NamedTuple):
    """A row of `tokens.parquet`, without the hash."""

    row: int
    side: int
    ids: list[int]
    loss_mask: list[int]
    truncated: bool


class Sample(NamedTuple):
    """A sequence that the report may show; samples sort by hash."""

    hash_hi: int
    hash_lo: int
    row: int
    side: int
    ids: list[int]
    loss_mask: list[int]


class Limit(NamedTuple):
    """How long sequences are handled.

    Attributes:
        length: Tokens.
        policy: `truncate`, `drop` or `split`.
        pairs: Whether the sequences of a row are the two sides of a preference.
    """

    length: int
    policy: str
    pairs: bool


def main(job: TokenizeLanguageJob, reporter: Reporter) -> Done:
    """See the module's description.

    Raises:
        BadModel: The tokenizer or its chat template cannot be used for these examples.
        BadData: An example has no target tokens.
        BadRecipe: The recipe splits preference pairs.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    limit = Limit(job.max_length, job.too_long, job.task == "preference")
    if limit.pairs and limit.policy == "split":
        raise BadRecipe(
            "training.too_long",
            "split, although parts of preference pairs cannot be compared",
            "truncate or drop",
            "choose one of them",
        )
    encoder = ExampleEncoder(training_tokenizer(job.tokenizer), job.task)
    for number, shard in enumerate(job.shards, 1):
        tokenize_shard(encoder, job.task, limit, shard)
        reporter.progress(always=True, done=number, total=len(job.shards), digest=shard.digest)
    return Done()


def tokenize_shard(encoder: ExampleEncoder, task: str, limit: Limit, shard: RowShard) -> None:
    """Tokenize one shard.

    Args:
        encoder: The tokenizer.
        task: `completion`, `instruction` or `preference`.
        limit: How long sequences are handled.
        shard: The shard, as in the job.

    Raises:
        BadModel, BadData: As `main`, with the row.
    """
    out, first = shard.out, 0
    samples: list[Sample] = []
    tables, lengths = [_table([], 0, np.empty((0, 2), np.uint64))], [np.empty((0, 4), np.int32)]
    for rows, groups in _encoded(encoder, task, shard):
        sequences, measured = [], np.zeros((len(groups), 4), np.int32)
        for row, group in enumerate(groups):
            kept = cut(row, group, limit)
            sequences += kept
            before = [len(each.ids) for each in group]
            measured[row] = (
                sum(len(each.ids) for each in kept),
                sum(before),
                sum(sum(each.loss_mask) for each in kept),
                max(before),
            )
        hashes = np.stack([rows.column(name).to_numpy() for name in ("hash_hi", "hash_lo")], 1)
        tables.append(_table(sequences, first, hashes))
        samples = _smallest(samples, sequences, first, hashes)
        lengths.append(measured)
        first += len(groups)
    pq.write_table(
        pa.concat_tables(tables).combine_chunks(),
        out / "tokens.parquet",
        compression="zstd",
        write_statistics=False,
    )
    np.save(out / "lengths.npy", np.concatenate(lengths))
    shown = [_segments(encoder, sample) for sample in samples]
    (out / "samples.json").write_bytes(orjson.dumps(shown, option=orjson.OPT_INDENT_2))


def cut(row: int, group: list[Encoded], limit: Limit) -> list[Sequence]:
    """Return the parts of a row's sequences that fit the limit.

    Parts without a target token are left out. If one side of a preference pair is, so is the other.

    Args:
        row: The row's number.
        group: Its sequences.
        limit: How long ones are handled.
    """
    kept: list[Sequence] = []
    for number, each in enumerate(group):
        parts = _parts(each, limit)
        side = number if limit.pairs else 0
        kept += [
            Sequence(row, side, part.ids, part.loss_mask, len(part.ids) < len(each.ids))
            for part in parts
            if any(part.loss_mask)
        ]
    return [] if limit.pairs and len(kept) < len(group) else kept


def _parts(each: Encoded, limit: Limit) -> Iterator[Encoded]:
    if len(each.ids) <= limit.length:
        yield each
    elif limit.policy == "truncate":
        yield Encoded(each.ids[: limit.length], each.loss_mask[: limit.length])
    elif limit.policy == "split":
        for start in range(0, len(each.ids), limit.length):
            part = slice(start, start + limit.length)
            # Nothing precedes the first token of a part, so it cannot be predicted.
            yield Encoded(each.ids[part], [0, *each.loss_mask[part][1:]])


def _encoded(
    encoder: ExampleEncoder, task: str, shard: RowShard
) -> Iterator[tuple[pa.RecordBatch, list[list[Encoded]]]]:
    """Yield batches with their rows' sequences; the next batch is rendered while this one is
    tokenized."""
    first = 0
    waiting: tuple[int, pa.RecordBatch, list[int], Future] | None = None
    with pq.ParquetFile(shard.rows) as file, ThreadPoolExecutor(1) as pool:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS)):
            rendered = _rendered(encoder, shard, first, batch)
            flat = list(chain.from_iterable(rendered))
            following = first, batch, list(map(len, rendered)), pool.submit(encoder.tokenize, flat)
            first += len(batch)
            if waiting:
                yield _grouped(waiting, task, shard)
            waiting = following
        if waiting:
            yield _grouped(waiting, task, shard)


def _rendered(
    encoder: ExampleEncoder, shard: RowShard, first: int, batch: pa.RecordBatch
) -> list[list[Rendering]]:
    found = []
    for row, example in enumerate(batch.column("example").to_pylist()):
        try:
            found.append(encoder.render(orjson.loads(example)))
        except BurnishError as error:
            raise _located(error, shard, first + row, batch.column("text")[row].as_py()) from error
    return found


def _grouped(
    waiting: tuple[int, pa.RecordBatch, list[int], Future], task: str, shard: RowShard
) -> tuple[pa.RecordBatch, list[list[Encoded]]]:
    first, batch, counts, future = waiting
    sequences = iter(future.result())
    groups = [[next(sequences) for _ in range(count)] for count in counts]
    for row, group in enumerate(groups):
        try:
            check_loss_mask(group, task)
        except BurnishError as error:
            raise _located(error, shard, first + row, batch.column("text")[row].as_py()) from error
    return batch, groups


def _located(error: BurnishError, shard: RowShard, row: int, text: str) -> BurnishError:
    """Return the error with the row that it occurred in."""
    shown = " ".join(text.split())
    shown = repr(shown if len(shown) <= _EXCERPT else f"{shown[:_EXCERPT]}…")
    place = f"row {row} of shard {shard.digest[:12]}: {shown}"
    if isinstance(error, BadData):
        return BadData(f"data, {place}", error.found, error.expected, error.fix)
    return type(error)(error.where, f"{error.found}, in {place}", error.expected, error.fix)


def _smallest(
    samples: list[Sample], sequences: list[Sequence], first: int, hashes: np.ndarray
) -> list[Sample]:
    """Return the first sequence (of each side) of the rows with the smallest hashes."""
    found = {(each.row, each.side): each for each in samples}
    for each in sequences:
        high, low = hashes[each.row].tolist()
        sample = Sample(high, low, each.row + first, each.side, each.ids, each.loss_mask)
        found.setdefault((sample.row, sample.side), sample)
    ordered = sorted(found.values(), key=lambda sample: sample[:4])
    rows = list(dict.fromkeys(sample.row for sample in ordered))[:_SAMPLES]
    return [sample for sample in ordered if sample.row in rows]


def _segments(encoder: ExampleEncoder, sample: Sample) -> dict[str, Any]:
    segments: list[dict[str, Any]] = []
    previous, end = "", 0
    for target, run_of in groupby(sample.loss_mask):
        end += len(list(run_of))
        # Decoded together with the preceding text: on its own it could lose its spaces.
        whole = encoder.decode(sample.ids[:end])
        text = whole[len(previous) :]
        if len(text) > _MAX_SEGMENT_CHARACTERS:
            half = _MAX_SEGMENT_CHARACTERS // 2
            text = f"{text[:half]} […] {text[-half:]}"
        segments.append({"target": bool(target), "text": text})
        previous = whole
    digest = f"{sample.hash_hi:016x}{sample.hash_lo:016x}"
    return {"hash": digest, "row": sample.row, "side": sample.side, "segments": segments}


def _table(sequences: list[Sequence], first: int, hashes: np.ndarray) -> pa.Table:
    rows = np.array([each.row for each in sequences], np.int64)
    lengths = np.array([len(each.ids) for each in sequences], np.int32)
    return pa.table(
        {
            "row": pa.array((rows + first).astype(np.uint32)),
            "side": pa.array([each.side for each in sequences], pa.uint8()),
            "hash_hi": pa.array(hashes[rows, 0]),
            "hash_lo": pa.array(hashes[rows, 1]),
            "input_ids": _lists((each.ids for each in sequences), lengths, np.int32),
            "loss_mask": _lists((each.loss_mask for each in sequences), lengths, np.uint8),
            "length": pa.array(lengths),
            "truncated": pa.array([each.truncated for each in sequences], pa.bool_()),
        }
    )


def _lists(values: Iterator[list[int]], lengths: np.ndarray, kind: type) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    flat = np.fromiter(chain.from_iterable(values), kind, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


if __name__ == "__main__":
    run(main, TokenizeLanguageJob)
