"""Training examples of classifiers: gathered from shards, ordered, and padded into batches.

The rows of a split go to one Arrow file, which is memory-mapped, so the data may be larger than
memory. They are ordered by the hashes of their inputs, independently of the order of the shards
and of their rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset, Sampler

from tasks.contracts.errors import BadData
from tasks.contracts.jobs import TokenShard

SPLIT_NUMBERS = {"train": 1, "validation": 2, "test": 3}
IGNORED_LABEL = -100
"""The label of an example that the loss ignores."""

_ROWS_AT_ONCE = 8192
_BATCHES_PER_POOL = 50


class Examples(Dataset):
    """The tokens of one split, ordered by the hashes of their inputs.

    Example -1 is a filler that the loss ignores.

    Attributes:
        lengths: Tokens of each example.
    """

    def __init__(self, file: Path) -> None:
        """Open a file written by `gather`.

        Args:
            file: An Arrow file; it is memory-mapped.
        """
        # Kept open: the arrays below are views into it.
        self._map = pa.memory_map(str(file))
        reader = pa.ipc.open_file(self._map)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._columns = [name for name in ("input_ids", "token_type_ids") if _has(batches, name)]
        self._batches = [_views(batch, self._columns) for batch in batches]
        self._starts = np.cumsum([0] + [batch.num_rows for batch in batches])
        hi, lo, lengths, labels = (
            _concatenated(batches, name) for name in ("hash_hi", "hash_lo", "length", "label")
        )
        self._order = np.lexsort((lo, hi))
        self.lengths = lengths[self._order]
        self._labels = labels

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: int) -> dict[str, Any]:
        counts = number >= 0
        row = int(self._order[number if counts else self.lengths.argmin()])
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        inside = row - self._starts[part]
        example: dict[str, Any] = {"labels": int(self._labels[row]) if counts else IGNORED_LABEL}
        for name in self._columns:
            offsets, values = self._batches[part][name]
            example[name] = values[offsets[inside] : offsets[inside + 1]]
        return example


class LengthGroupedSampler(Sampler[int]):
    """Batches of examples of similar length, in random order.

    The order depends on seed and epoch only, so a resumed epoch continues with the batches that
    the interrupted one had left.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng([self._seed, self._epoch])
        shuffled = draw.permutation(len(self._lengths))
        batches: list[np.ndarray] = []
        size = self._batch_size
        # The last batch may be short and must stay last: the loader cuts every `size` examples.
        whole = len(shuffled) // size * size
        pool = size * max(1, min(_BATCHES_PER_POOL, whole // size // 4))
        for start in range(0, whole, pool):
            part = shuffled[start : min(start + pool, whole)]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += np.split(part, len(part) // size)
        order = draw.permutation(len(batches)).tolist()
        if order and self._epoch == 0:
            # The largest first: if it does not fit into memory, training fails at once.
            longest = max(order, key=lambda number: self._lengths[batches[number]].sum())
            order.remove(longest)
            order.insert(0, longest)
        for number in order:
            yield from batches[number].tolist()
        yield from shuffled[whole:].tolist()


class MicroBatches:
    """A batch sampler of one process's share of each step, in micro-batches.

    All processes get the same number of micro-batches; example -1 fills uneven steps.

    Args:
        order: The examples in training order.
        batch_size: Examples per step, over all processes. The last step may have fewer.
        size: Examples per micro-batch.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        order: LengthGroupedSampler,
        batch_size: int,
        size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._order = order
        self._batch_size, self._size = batch_size, size
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        whole, rest = divmod(len(self._order), self._batch_size)
        return whole * self._parts(self._batch_size) + self._parts(rest)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        for start in range(0, len(order), self._batch_size):
            step = order[start : start + self._batch_size]
            step += [-1] * (-len(step) % self._world_size)
            share = step[self._rank :: self._world_size]
            for first in range(0, len(share), self._size):
                yield share[first : first + self._size]

    @property
    def batch_sampler(self) -> MicroBatches:
        """This sampler: the Trainer calls `set_epoch` on `batch_sampler.batch_sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
        self._order.set_epoch(epoch)

    def _parts(self, examples: int) -> int:
        share = -(-examples // self._world_size)
        return -(-share // self._size)


class LongestFirstSampler(Sampler[int]):
    """The longest examples first, for evaluation: little padding, always the same batches."""

    def __init__(self, lengths: np.ndarray) -> None:
        self._order = np.argsort(-lengths, kind="stable")

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order.tolist())


class PadCollator:
    """Collates examples into a batch, padded to the longest of them.

    Args:
        tokenizer: Defines the pad token and the padding side.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._fill = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
        }
        self._left = tokenizer.padding_side == "left"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(example["input_ids"]) for example in examples]
        width = max(lengths)
        batch = {"labels": torch.tensor([example["labels"] for example in examples])}
        mask = np.zeros((len(examples), width), dtype=np.int64)
        spans = [slice(width - n, width) if self._left else slice(0, n) for n in lengths]
        for row, span in enumerate(spans):
            mask[row, span] = 1
        batch["attention_mask"] = torch.from_numpy(mask)
        for name, fill in self._fill.items():
            if name in examples[0]:
                table = np.full((len(examples), width), fill, dtype=np.int64)
                for row, span in enumerate(spans):
                    table[row, span] = examples[row][name]
                batch[name] = torch.from_numpy(table)
        return batch


def gather(
    shards: Sequence[TokenShard], keep_file: Path, labels: list[str], split: str, out: Path
) -> Examples:
    """Copy the rows of one split from the token files of all shards to one file.

    Args:
        shards: Their tokens.
        keep_file: For each shard digest, the split number of every row.
        labels: In the order of their ids.
        split: `train`, `validation` or `test`.
        out: The Arrow file to write.

    Raises:
        BadData: The split is empty, a label is unknown, or tokens and data differ in rows.
    """
    rows = functools.partial(_rows, labels=labels)
    if not copy_split(shards, keep_file, split, out, rows):
        raise BadData(
            f"{split} split",
            "no examples",
            "at least one",
            "add data, or raise the share of this split (data.split)",
        )
    return Examples(out)


def copy_split(
    shards: Sequence[TokenShard],
    keep_file: Path,
    split: str,
    out: Path,
    rows: Callable[[TokenShard, np.ndarray], Iterator[pa.RecordBatch]],
) -> bool:
    """Copy the rows of one split from shards to one Arrow file.

    Args:
        shards, keep_file, split, out: As `gather` takes them.
        rows: Yields the rows to write; takes a shard and a mask of its rows in the split.

    Returns:
        Whether the split has any rows.
    """
    writer: pa.RecordBatchFileWriter | None = None
    with np.load(keep_file, allow_pickle=False) as keep, pa.OSFile(str(out), "wb") as sink:
        for shard in shards:
            for batch in rows(shard, keep[shard.digest] == SPLIT_NUMBERS[split]):
                if writer is None:
                    writer = pa.ipc.new_file(sink, batch.schema)
                writer.write_batch(batch)
        if writer is not None:
            writer.close()
    return writer is not None


def _rows(shard: TokenShard, chosen: np.ndarray, labels: list[str]) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(shard.tokens, memory_map=True)
    if file.metadata.num_rows != len(chosen):
        raise BadData(
            f"shard {shard.digest[:12]}",
            f"{file.metadata.num_rows} rows of tokens",
            f"{len(chosen)}, as in the data",
            "start the run again with --refresh tokenize",
        )
    start = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
        wanted = pa.array(chosen[start : start + batch.num_rows])
        start += batch.num_rows
        batch = batch.filter(wanted)
        if batch.num_rows:
            yield _numbered(batch, labels, shard.digest)


def _numbered(batch: pa.RecordBatch, labels: list[str], digest: str) -> pa.RecordBatch:
    names = batch.column("label").cast(pa.string())
    numbers = pc.index_in(names, value_set=pa.array(labels, pa.string()))
    if numbers.null_count:
        unknown = names.filter(pc.is_null(numbers))[0].as_py()
        raise BadData(
            f"shard {digest[:12]}",
            f"label {unknown!r}",
            f"one of {', '.join(labels)}",
            "correct the data, or add the label to data.labels",
        )
    columns = {
        name: batch.column(name).cast(kind)
        for name, kind in (
            ("hash_hi", pa.uint64()),
            ("hash_lo", pa.uint64()),
            ("length", pa.int32()),
            ("input_ids", pa.list_(pa.int32())),
            ("token_type_ids", pa.list_(pa.int8())),
        )
        if name in batch.schema.names
    }
    return pa.RecordBatch.from_pydict({"label": numbers, **columns})


def _views(batch: pa.RecordBatch, names: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    columns = {name: batch.column(name) for name in names}
    return {
        name: (column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=True))
        for name, column in columns.items()
    }


def _concatenated(batches: list[pa.RecordBatch], name: str) -> np.ndarray:
    return np.concatenate([batch.column(name).to_numpy() for batch in batches])


def _has(batches: list[pa.RecordBatch], name: str) -> bool:
    return name in batches[0].schema.names
