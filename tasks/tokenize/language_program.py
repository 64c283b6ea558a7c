"""Tokenizes the examples of shards for a language model.

Job: `TokenizeLanguageJob`. It writes three files to the folder `out` of each shard:

`tokens.parquet`: `row` (uint32: the row within the shard; absent if it was left out, repeated if it
was split into several sequences), `side` (uint8: 0; for preference pairs first 0, chosen, and then
1, rejected), `hash_hi`, `hash_lo` (uint64), `input_ids` (list of int32), `loss_mask` (list of uint8
of the same length: 1 for target tokens of the loss), `length` (int32, tokens), `truncated` (bool:
the sequence is part of a longer one);
`lengths.npy`: int32, shape (rows of the shard, 5): tokens kept (of all parts and sides; 0 if the
row was left out), tokens before truncation, target tokens kept, tokens of the row's longest
sequence before truncation, and 1 if an answer does not follow the tokens that its prompt is served
with;
`samples.json`: the kept rows with the smallest hashes, for the report: a list, ordered by hash, of
`hash` (32 hexadecimal digits), `row`, `side`, and `segments`, a list of `target` (bool) and `text`.

After each shard it reports progress: `done`, `total`, `digest`.
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
from tasks.load.json_values import parse_json
from tasks.runtime.program import Reporter, run

_BATCH_ROWS = 512
_COLUMNS = ("text", "example", "hash_hi", "hash_lo")
_MAX_EXCERPT_CHARACTERS = 80
# More than the report shows: it shows training rows only, and the split is not known here.
_SAMPLES = 12
_MAX_SEGMENT_CHARACTERS = 2000


class Sequence(NamedTuple):
    """A row of `tokens.parquet`, without the hashes."""

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
    """The maximum length of a sequence, and what happens to longer ones.

    Attributes:
        length: Tokens.
        policy: `truncate`, `drop` or `split`.
        pairs: Whether the sequences of a row are the two sides of a preference.
    """

    length: int
    policy: str
    pairs: bool


def main(job: TokenizeLanguageJob, reporter: Reporter) -> Done:
    """Tokenize the shards; see the module docstring.

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
        limit: The maximum length, and what happens to longer sequences.
        shard: The shard, from the job.

    Raises:
        BadModel, BadData: As in `main`; the error names the row.
    """
    first = 0
    samples: list[Sample] = []
    tables = [_token_table([], 0, np.empty((0, 2), np.uint64))]
    lengths = [np.empty((0, 5), np.int32)]
    for rows, groups in _encode_batches(encoder, task, shard):
        sequences, measured = [], np.zeros((len(groups), 5), np.int32)
        for row, group in enumerate(groups):
            kept = apply_limit(row, group, limit)
            sequences += kept
            before = [len(each.ids) for each in group]
            measured[row] = (
                sum(len(each.ids) for each in kept),
                sum(before),
                sum(sum(each.loss_mask) for each in kept),
                max(before),
                not all(each.as_served for each in group),
            )
        hashes = np.stack([rows.column(name).to_numpy() for name in ("hash_hi", "hash_lo")], 1)
        tables.append(_token_table(sequences, first, hashes))
        samples = _update_samples(samples, sequences, first, hashes)
        lengths.append(measured)
        first += len(groups)
    pq.write_table(
        pa.concat_tables(tables).combine_chunks(),
        shard.out / "tokens.parquet",
        compression="zstd",
        write_statistics=False,
    )
    np.save(shard.out / "lengths.npy", np.concatenate(lengths))
    records = [_sample_record(encoder, sample) for sample in samples]
    (shard.out / "samples.json").write_bytes(orjson.dumps(records, option=orjson.OPT_INDENT_2))


def apply_limit(row: int, group: list[Encoded], limit: Limit) -> list[Sequence]:
    """Return the row's sequences, or the parts of them that fit within the limit.

    Parts without target tokens are left out. A preference pair is left out if one of its sides is,
    or if both are the same tokens: then nothing can be learned from it.

    Args:
        row: The row's number.
        group: The row's sequences.
        limit: The maximum length, and what happens to longer sequences.
    """
    kept: list[Sequence] = []
    for number, each in enumerate(group):
        parts = _split_at_limit(each, limit)
        side = number if limit.pairs else 0
        kept += [
            Sequence(row, side, part.ids, part.loss_mask, len(part.ids) < len(each.ids))
            for part in parts
            if any(part.loss_mask)
        ]
    if limit.pairs and (len(kept) < len(group) or kept[0].ids == kept[1].ids):
        return []
    return kept


def _split_at_limit(sequence: Encoded, limit: Limit) -> Iterator[Encoded]:
    if len(sequence.ids) <= limit.length:
        yield sequence
    elif limit.policy == "truncate":
        yield Encoded(sequence.ids[: limit.length], sequence.loss_mask[: limit.length])
    elif limit.policy == "split":
        for start in range(0, len(sequence.ids), limit.length):
            part = slice(start, start + limit.length)
            # Nothing precedes the first token of a part, so it cannot be predicted.
            yield Encoded(sequence.ids[part], [0, *sequence.loss_mask[part][1:]])


def _encode_batches(
    encoder: ExampleEncoder, task: str, shard: RowShard
) -> Iterator[tuple[pa.RecordBatch, list[list[Encoded]]]]:
    """Yield batches with the sequences of their rows; render the next batch while this one is
    tokenized."""
    first = 0
    pending: tuple[int, pa.RecordBatch, list[int], Future] | None = None
    with pq.ParquetFile(shard.rows) as file, ThreadPoolExecutor(1) as pool:
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS)):
            rendered = _render(encoder, shard, first, batch)
            flat = list(chain.from_iterable(rendered))
            started = first, batch, list(map(len, rendered)), pool.submit(encoder.tokenize, flat)
            first += len(batch)
            if pending:
                yield _group_by_row(pending, task, shard)
            pending = started
        if pending:
            yield _group_by_row(pending, task, shard)


def _render(
    encoder: ExampleEncoder, shard: RowShard, first: int, batch: pa.RecordBatch
) -> list[list[Rendering]]:
    renderings = []
    for row, example in enumerate(batch.column("example").to_pylist()):
        try:
            renderings.append(encoder.render(parse_json(example)))
        except BurnishError as error:
            raise _with_row(error, shard, first + row, batch.column("text")[row].as_py()) from error
    return renderings


def _group_by_row(
    pending: tuple[int, pa.RecordBatch, list[int], Future], task: str, shard: RowShard
) -> tuple[pa.RecordBatch, list[list[Encoded]]]:
    first, batch, counts, future = pending
    sequences = iter(future.result())
    groups = [[next(sequences) for _ in range(count)] for count in counts]
    for row, group in enumerate(groups):
        try:
            check_loss_mask(group, task)
        except BurnishError as error:
            raise _with_row(error, shard, first + row, batch.column("text")[row].as_py()) from error
    return batch, groups


def _with_row(error: BurnishError, shard: RowShard, row: int, text: str) -> BurnishError:
    """Return the error with the row that caused it."""
    excerpt = " ".join(text.split())
    if len(excerpt) > _MAX_EXCERPT_CHARACTERS:
        excerpt = f"{excerpt[:_MAX_EXCERPT_CHARACTERS]}…"
    location = f"row {row} of shard {shard.digest[:12]}: {excerpt!r}"
    if isinstance(error, BadData):
        return BadData(f"data, {location}", error.found, error.expected, error.fix)
    return type(error)(error.where, f"{error.found}, in {location}", error.expected, error.fix)


def _update_samples(
    samples: list[Sample], sequences: list[Sequence], first: int, hashes: np.ndarray
) -> list[Sample]:
    """Return the samples of the rows with the smallest hashes, one per side: its first sequence."""
    by_row = {(each.row, each.side): each for each in samples}
    for each in sequences:
        high, low = hashes[each.row].tolist()
        sample = Sample(high, low, each.row + first, each.side, each.ids, each.loss_mask)
        by_row.setdefault((sample.row, sample.side), sample)
    ordered = sorted(by_row.values(), key=lambda sample: sample[:4])
    rows = list(dict.fromkeys(sample.row for sample in ordered))[:_SAMPLES]
    return [sample for sample in ordered if sample.row in rows]


def _sample_record(encoder: ExampleEncoder, sample: Sample) -> dict[str, Any]:
    """Return a sample as `samples.json` holds it, decoded in segments of targets and context."""
    segments: list[dict[str, Any]] = []
    previous, end = "", 0
    for target, tokens in groupby(sample.loss_mask):
        end += len(list(tokens))
        # Decoded together with the preceding text: alone, a segment could lose its spaces.
        whole = encoder.decode(sample.ids[:end])
        text = whole[len(previous) :]
        if len(text) > _MAX_SEGMENT_CHARACTERS:
            half = _MAX_SEGMENT_CHARACTERS // 2
            text = f"{text[:half]} […] {text[-half:]}"
        segments.append({"target": bool(target), "text": text})
        previous = whole
    digest = f"{sample.hash_hi:016x}{sample.hash_lo:016x}"
    return {"hash": digest, "row": sample.row, "side": sample.side, "segments": segments}


def _token_table(sequences: list[Sequence], first: int, hashes: np.ndarray) -> pa.Table:
    rows = np.array([each.row for each in sequences], np.int64)
    lengths = np.array([len(each.ids) for each in sequences], np.int32)
    return pa.table(
        {
            "row": pa.array((rows + first).astype(np.uint32)),
            "side": pa.array([each.side for each in sequences], pa.uint8()),
            "hash_hi": pa.array(hashes[rows, 0]),
            "hash_lo": pa.array(hashes[rows, 1]),
            "input_ids": _list_array((each.ids for each in sequences), lengths, np.int32),
            "loss_mask": _list_array((each.loss_mask for each in sequences), lengths, np.uint8),
            "length": pa.array(lengths),
            "truncated": pa.array([each.truncated for each in sequences], pa.bool_()),
        }
    )


def _list_array(values: Iterator[list[int]], lengths: np.ndarray, kind: type) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    flat = np.fromiter(chain.from_iterable(values), kind, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


if __name__ == "__main__":
    run(main, TokenizeLanguageJob)
