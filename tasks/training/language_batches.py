"""Training examples of language models: gathered from shards, and batched as tensors.

The examples of a step depend on seed and epoch only. Micro-batches are a matter of memory: the loss
of a step is a sum over its target tokens (or pairs), divided by their number in the whole step, so
the way it is cut changes nothing but rounding.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset

from tasks.contracts.errors import BadData
from tasks.contracts.jobs import TokenShard
from tasks.kernels.packed_attention import packed_arguments
from tasks.training.classification_batches import copy_split

ROWS_PER_READ = 4096
_COLUMNS = {
    "side": pa.uint8(),
    "hash_hi": pa.uint64(),
    "hash_lo": pa.uint64(),
    "input_ids": pa.list_(pa.int32()),
    "loss_mask": pa.list_(pa.uint8()),
    "length": pa.int32(),
}


class Part(NamedTuple):
    """One sequence of tokens.

    Attributes:
        ids: int32: its token ids.
        loss_mask: uint8: 1 where the token is a target of the loss. Never the first.
    """

    ids: np.ndarray
    loss_mask: np.ndarray


class Example(NamedTuple):
    """A training example: one sequence, or the chosen and the rejected one of a pair.

    Attributes:
        number: Its index in the split.
        parts: The sequences.
    """

    number: int
    parts: tuple[Part, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all parts."""
        return sum(len(part.ids) for part in self.parts)

    @property
    def widest(self) -> int:
        """Tokens of the longest part."""
        return max(len(part.ids) for part in self.parts)


class TokenExamples(Dataset):
    """The tokens of one split, ordered by the hashes of their inputs.

    Attributes:
        lengths: int64: tokens of each example, over all parts.
        widest: Tokens of the longest sequence.
    """

    def __init__(self, file: Path, parts: int) -> None:
        """Open a file written by `gather_tokens`.

        Args:
            file: An Arrow file; it is memory-mapped.
            parts: Sequences per example: 1, or 2 for pairs.
        """
        # Kept open: the arrays below are views into it.
        self._map = pa.memory_map(str(file))
        reader = pa.ipc.open_file(self._map)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._views = [_views(batch) for batch in batches]
        self._starts = np.cumsum([0] + [batch.num_rows for batch in batches])
        self._parts = parts
        hi, lo, lengths = (
            np.concatenate([batch.column(name).to_numpy() for batch in batches])
            for name in ("hash_hi", "hash_lo", "length")
        )
        self.widest = int(lengths.max())
        lengths = lengths.astype(np.int64).reshape(-1, parts).sum(axis=1)
        hi, lo = hi[::parts], lo[::parts]
        self._order = np.lexsort((self._content(hi, lo), lo, hi))
        self.lengths = lengths[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: int) -> Example:
        first = int(self._order[number]) * self._parts
        return Example(number, tuple(self._row(first + side) for side in range(self._parts)))

    def _row(self, row: int) -> Part:
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets, ids, loss_mask = self._views[batch]
        inside = row - self._starts[batch]
        place = slice(offsets[inside], offsets[inside + 1])
        return Part(ids[place], loss_mask[place])

    def _content(self, hi: np.ndarray, lo: np.ndarray) -> np.ndarray:
        """A digest of the tokens of examples with equal hashes; 0 for all others.

        Examples with the same question have equal hashes. Their order must not depend on that of
        the shards either.
        """
        digests = np.zeros(len(hi), np.uint64)
        order = np.lexsort((lo, hi))
        equal = (np.diff(hi[order]) == 0) & (np.diff(lo[order]) == 0)
        twins = np.union1d(order[1:][equal], order[:-1][equal])
        for unit in twins.tolist():
            digest = hashlib.blake2b(digest_size=8)
            for side in range(self._parts):
                part = self._row(unit * self._parts + side)
                digest.update(part.ids.tobytes() + part.loss_mask.tobytes())
            digests[unit] = int.from_bytes(digest.digest(), "big")
        return digests


class Batch(NamedTuple):
    """Examples as tensors.

    Attributes:
        inputs: Arguments of the model.
        target_positions: int64: positions, in the flattened rows, whose next token is a target.
        targets: int64: the target token of each position.
        sequence_ids: int64: the sequence of the batch that each position belongs to.
        numbers: The examples' indexes in the split.
        tokens: Tokens without padding.
    """

    inputs: dict[str, Any]
    target_positions: torch.Tensor
    targets: torch.Tensor
    sequence_ids: torch.Tensor
    numbers: list[int]
    tokens: int


def make_batch(examples: list[Example], packing: bool, device: str) -> Batch:
    """Collate examples into a batch.

    Args:
        examples: The examples of one micro-batch.
        packing: Whether to concatenate all in one row; otherwise each sequence has its own row,
            padded on the right.
        device: The model's device.
    """
    parts = [part for example in examples for part in example.parts]
    lengths = [len(part.ids) for part in parts]
    width = sum(lengths) if packing else max(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if packing else np.arange(len(parts)) * width
    # Padding on the right changes nothing before it: attention is causal.
    ids = np.zeros(width if packing else width * len(parts), np.int64)
    target_positions, sequence_ids = [], []
    for number, (part, start) in enumerate(zip(parts, starts.tolist(), strict=True)):
        ids[start : start + len(part.ids)] = part.ids
        # A token is predicted at the position before it.
        positions = np.flatnonzero(part.loss_mask[1:])
        target_positions.append(positions + start)
        sequence_ids.append(np.full(len(positions), number))
    where = np.concatenate(target_positions)
    inputs = {"input_ids": _to_device(ids.reshape(1 if packing else len(parts), -1), device)}
    if packing:
        inputs |= packed_arguments(lengths, device)
    return Batch(
        inputs,
        _to_device(where, device),
        _to_device(ids[where + 1], device),
        _to_device(np.concatenate(sequence_ids), device),
        [example.number for example in examples],
        sum(lengths),
    )


def gather_tokens(
    shards: Sequence[TokenShard], keep_file: Path, split: str, out: Path, pairs: bool
) -> TokenExamples:
    """Copy the sequences of one split from the token files of all shards to one file.

    Args:
        shards: Their tokens.
        keep_file: For each shard digest, the split number of every row.
        split: `train`, `validation` or `test`.
        out: The Arrow file to write.
        pairs: Whether an example is a chosen and a rejected sequence.

    Raises:
        BadData: The split has no target tokens, or the tokens belong to other data.
    """
    sequences = functools.partial(_sequences, pairs=pairs)
    if not copy_split(shards, keep_file, split, out, sequences):
        raise BadData(
            f"{split} split",
            "no examples with target tokens",
            "at least one",
            "add data, or raise the share of this split (data.split); if answers are cut off, "
            "raise training.max_length",
        )
    return TokenExamples(out, 2 if pairs else 1)


def _sequences(shard: TokenShard, chosen: np.ndarray, pairs: bool) -> Iterator[pa.RecordBatch]:
    left = None
    for batch in pq.ParquetFile(shard.tokens, memory_map=True).iter_batches(
        ROWS_PER_READ, columns=["row", *_COLUMNS]
    ):
        table = pa.Table.from_batches([batch])
        if left is not None:
            table = pa.concat_tables([left, table])
        # Pairs stay together across the batches of the file.
        whole = len(table) // 2 * 2 if pairs else len(table)
        left = table.slice(whole) if whole < len(table) else None
        yield from _with_targets(table.slice(0, whole), shard, chosen, pairs)
    if left is not None:
        raise _foreign(shard, "half a pair")


def _with_targets(
    table: pa.Table, shard: TokenShard, chosen: np.ndarray, pairs: bool
) -> Iterator[pa.RecordBatch]:
    """The chosen rows of a table that have target tokens."""
    rows = table.column("row").to_numpy()
    if len(rows) and rows.max() >= len(chosen):
        raise _foreign(shard, f"row {rows.max()} of {len(chosen)}")
    if pairs and (table.column("side").to_numpy() != np.arange(len(rows)) % 2).any():
        raise _foreign(shard, "a chosen without its rejected answer")
    has_targets = _targets_per_row(table.column("loss_mask").combine_chunks()) > 0
    if pairs:
        has_targets = np.repeat(has_targets.reshape(-1, 2).all(axis=1), 2)
    table = table.filter(pa.array(chosen[rows] & has_targets)).select(list(_COLUMNS))
    if len(table):
        yield from table.cast(pa.schema(_COLUMNS)).combine_chunks().to_batches()


def _targets_per_row(marks: pa.ListArray) -> np.ndarray:
    """The number of target tokens in each row."""
    offsets = marks.offsets.to_numpy()
    sums = np.concatenate([[0], np.cumsum(marks.values.to_numpy(), dtype=np.int64)])
    return sums[offsets[1:]] - sums[offsets[:-1]]


def _views(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, loss_mask = batch.column("input_ids"), batch.column("loss_mask")
    if not ids.offsets.equals(loss_mask.offsets):
        raise BadData(
            "tokens",
            "rows whose loss mask and tokens differ in length",
            "a loss mask value for each token",
            "start the run again with --refresh tokenize",
        )
    return ids.offsets.to_numpy(), ids.values.to_numpy(), loss_mask.values.to_numpy()


def _to_device(values: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)


def _foreign(shard: TokenShard, found: str) -> BadData:
    return BadData(
        f"shard {shard.digest[:12]}",
        found,
        "the tokens of the data that is trained on",
        "start the run again with --refresh tokenize",
    )
