"""Deduplicates the rows of all shards and finds leaks between splits and conflicting labels.

Every shard has an index of its rows, sorted by the hash of their inputs. The indexes are merged one
range of hashes at a time, so that memory grows by one byte per row only.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tasks.load.shards import INDEX
from tasks.load.splits import TEST, TRAIN
from tasks.storage.folders import write_errors

ROWS_AT_ONCE = 200_000
"""Approximate number of rows in one range of hashes."""
BAND_ENTRIES_AT_ONCE = 500_000
"""Approximate number of MinHash band entries compared at a time."""
EXAMPLES = 5
_MAX_FILES = 256

Conflicts = Literal["keep", "drop", "keep-train"]


@dataclass
class Deduplicated:
    """Which rows are kept, and why others are not.

    Rows are numbered shard after shard.

    Attributes:
        keep: uint8 per row: 0 if it is dropped, else its split.
        starts: The first row number of each shard, then the total number of rows.
        counts: Number of kept rows by label hash and split; the hash is 0 if labels are not
            counted.
        duplicates: Number of rows dropped because another row has the same inputs and label.
        leaks: Number of rows dropped, by split, because their inputs are also in a stricter split.
        conflicts: Number of inputs with more than one label (or, for language models, answer).
        conflict_rows: The first few of these, as tuples of row numbers.
        conflicts_dropped: Number of rows dropped, by split, because their inputs have more than
            one label.
        near: Number of kept validation and test rows, by split, that are near-duplicates of a
            training row.
        near_rows: The first few such pairs: held-out row, training row.
        test_digest: SHA-256 over the sorted hashes of the kept test rows.
    """

    keep: np.ndarray
    starts: np.ndarray
    counts: Counter = field(default_factory=Counter)
    duplicates: int = 0
    leaks: Counter = field(default_factory=Counter)
    conflicts: int = 0
    conflict_rows: list[tuple[int, ...]] = field(default_factory=list)
    conflicts_dropped: Counter = field(default_factory=Counter)
    near: Counter = field(default_factory=Counter)
    near_rows: list[tuple[int, int]] = field(default_factory=list)
    test_digest: str = ""

    def locate(self, row: int) -> tuple[int, int]:
        """Return a row's shard number and its row number in that shard."""
        shard = int(np.searchsorted(self.starts, row, "right")) - 1
        return shard, row - int(self.starts[shard])


def deduplicate(
    indexes: list[Path],
    seen: Path,
    rows_at_once: int = ROWS_AT_ONCE,
    count_labels: bool = True,
    conflicts: Conflicts = "keep",
) -> Deduplicated:
    """Decide for every row whether it is kept.

    Of rows with equal inputs, only those of the strictest split stay (test before validation before
    train), and of these one per label: the one with the smallest hash of its values, so that the
    order of the source does not matter.

    Args:
        indexes: Each shard's `index.npy`, in the order of the shards.
        seen: Where to write the sorted hashes of the train and validation inputs.
        rows_at_once: Approximate number of rows processed at a time.
        count_labels: Whether to count kept rows by label; memory grows with the number of labels.
        conflicts: What happens to inputs with more than one label: `drop` them, keep those of the
            training split (`keep-train`), or `keep` all.
    """
    sizes = [np.load(path, mmap_mode="r").shape[0] for path in indexes]
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    result = Deduplicated(np.zeros(int(starts[-1]), np.uint8), starts)
    test = hashlib.sha256()
    raw_seen = seen.with_suffix(".raw")
    # Two hashes of 8 bytes per row, in both files for a moment.
    with write_errors(seen, 2 * 16 * int(starts[-1])):
        with open(raw_seen, "wb") as out:
            for rows, row_numbers in _ranges(indexes, starts, rows_at_once):
                _deduplicate_range(rows, row_numbers, result, count_labels, conflicts, test, out)
        _write_array(raw_seen, seen)
    result.test_digest = test.hexdigest()
    return result


def _ranges(indexes: list[Path], starts: np.ndarray, rows_at_once: int):
    """Yield index entries and their row numbers, one range of hashes at a time."""
    count = max(1, -(-int(starts[-1]) // rows_at_once))
    edges = [(number << 64) // count for number in range(1, count)]
    # Computed with Python integers: floats cannot represent such edges exactly.
    edges = np.array(edges, np.uint64)
    bounds = np.zeros((len(indexes), count + 1), np.int64)
    offsets = []
    for number, path in enumerate(indexes):
        entries = np.load(path, mmap_mode="r")
        bounds[number, 1:-1] = np.searchsorted(entries["hash_hi"], edges)
        bounds[number, -1] = len(entries)
        offsets.append(entries.offset)
    for place in range(count):
        parts, row_numbers = [], []
        for number in np.flatnonzero(bounds[:, place] < bounds[:, place + 1]).tolist():
            low, high = bounds[number, place : place + 2].tolist()
            # Read rather than memory-mapped: mapped pages would stay in memory.
            start = offsets[number] + low * INDEX.itemsize
            part = np.fromfile(indexes[number], INDEX, high - low, offset=start)
            parts.append(part)
            row_numbers.append(part["row"].astype(np.int64) + starts[number])
        if parts:
            yield np.concatenate(parts), np.concatenate(row_numbers)


def _deduplicate_range(
    rows: np.ndarray,
    row_numbers: np.ndarray,
    result: Deduplicated,
    count_labels: bool,
    conflicts: Conflicts,
    test,
    out,
) -> None:
    if not len(rows):
        return
    order = np.lexsort(
        (row_numbers, rows["raw"], rows["label_hash"], rows["hash_lo"], rows["hash_hi"])
    )
    rows, row_numbers = rows[order], row_numbers[order]
    first = _differs_from_previous(rows["hash_hi"], rows["hash_lo"])
    inputs = np.cumsum(first) - 1
    best = np.maximum.reduceat(rows["split"], np.flatnonzero(first))
    stays = rows["split"] == best[inputs]
    result.leaks.update(Counter(rows["split"][~stays].tolist()))
    rows, row_numbers, inputs = rows[stays], row_numbers[stays], inputs[stays]
    chosen = _differs_from_previous(inputs, rows["label_hash"])
    result.duplicates += int(len(rows) - chosen.sum())
    rows, row_numbers, inputs = rows[chosen], row_numbers[chosen], inputs[chosen]
    conflicting = _record_conflicts(inputs, row_numbers, result)
    if conflicts != "keep":
        dropped = conflicting & ((conflicts == "drop") | (rows["split"] != TRAIN))
        result.conflicts_dropped.update(Counter(rows["split"][dropped].tolist()))
        rows, row_numbers, inputs = rows[~dropped], row_numbers[~dropped], inputs[~dropped]
    result.keep[row_numbers] = rows["split"]
    labels = rows["label_hash"] if count_labels else np.zeros(len(rows), np.uint64)
    pairs = np.stack([labels, rows["split"].astype(np.uint64)], axis=1)
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    for (label, split), number in zip(unique.tolist(), counts.tolist(), strict=True):
        result.counts[label, split] += number
    hashes = np.stack([rows["hash_hi"], rows["hash_lo"], rows["raw"]], axis=1).astype("<u8")
    is_test = rows["split"] == TEST
    test.update(np.ascontiguousarray(hashes[is_test]).tobytes())
    seen = ~is_test & _differs_from_previous(inputs)
    out.write(np.ascontiguousarray(hashes[seen, :2]).tobytes())


def _differs_from_previous(*columns: np.ndarray) -> np.ndarray:
    """Whether each row differs from the one before it; true for the first row."""
    differs = np.ones(len(columns[0]), bool)
    if len(differs):
        differs[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return differs


def _record_conflicts(
    inputs: np.ndarray, row_numbers: np.ndarray, result: Deduplicated
) -> np.ndarray:
    """Count the inputs that several rows have; return whether each row has such an input."""
    starts = np.flatnonzero(_differs_from_previous(inputs))
    sizes = np.diff(np.append(starts, len(inputs)))
    conflicting = np.flatnonzero(sizes > 1)
    result.conflicts += len(conflicting)
    for number in conflicting[: EXAMPLES - len(result.conflict_rows)]:
        start = starts[number]
        result.conflict_rows.append(tuple(row_numbers[start : start + sizes[number]].tolist()))
    return np.repeat(sizes > 1, sizes)


def _write_array(raw: Path, path: Path) -> None:
    pairs = raw.stat().st_size // 16
    with open(path, "wb") as out:
        header = {"descr": "<u8", "fortran_order": False, "shape": (pairs, 2)}
        np.lib.format.write_array_header_1_0(out, header)
        with open(raw, "rb") as data:
            while block := data.read(1 << 20):
                out.write(block)
    raw.unlink()


def find_near_duplicates(
    bands: list[Path], result: Deduplicated, scratch: Path, at_once: int = BAND_ENTRIES_AT_ONCE
) -> None:
    """Count the kept validation and test rows that share a MinHash band with a training row.

    Band keys are partitioned into files by their highest bits, and compared one file at a time.

    Args:
        bands: Each shard's `near.npy`, in the order of the shards.
        result: The result of `deduplicate`; its `near` and `near_rows` are filled in.
        scratch: An empty folder.
        at_once: Approximate number of band entries compared at a time.
    """
    columns = np.load(bands[0], mmap_mode="r").shape[1] if bands else 0
    with write_errors(scratch, 16 * columns * int(result.starts[-1])):
        _count_near_duplicates(bands, columns, result, scratch, at_once)


def _count_near_duplicates(
    bands: list[Path], columns: int, result: Deduplicated, scratch: Path, at_once: int
) -> None:
    count = max(1, min(_MAX_FILES, -(-int(result.starts[-1]) * columns // at_once)))
    files = [open(scratch / f"bands-{number}", "w+b") for number in range(count)]  # noqa: SIM115
    try:
        for number, path in enumerate(bands):
            _partition(np.load(path), result, number, files)
        near = np.zeros(len(result.keep), bool)
        examples: dict[int, int] = {}
        for file in files:
            file.seek(0)
            entries = np.fromfile(file, np.uint64).reshape(-1, 2)
            _compare(entries, result, near, examples)
    finally:
        for file in files:
            file.close()
    result.near.update(Counter(result.keep[near].tolist()))
    result.near_rows = sorted(examples.items())


def _partition(keys: np.ndarray, result: Deduplicated, shard: int, files: list) -> None:
    start, stop = result.starts[shard], result.starts[shard + 1]
    kept = np.flatnonzero(result.keep[start:stop])
    # Equal keys of different bands mean nothing, so the band's number goes into the key.
    salt = np.arange(keys.shape[1], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    entries = np.empty((len(kept), keys.shape[1], 2), np.uint64)
    entries[:, :, 0] = keys[kept] ^ salt
    entries[:, :, 1] = (kept + start).astype(np.uint64)[:, None]
    entries = entries.reshape(-1, 2)
    width = np.uint64(-(-(1 << 64) // len(files)) if len(files) > 1 else (1 << 64) - 1)
    target = entries[:, 0] // width if len(files) > 1 else np.zeros(len(entries), np.uint64)
    for number, file in enumerate(files):
        file.write(entries[target == number].tobytes())


def _compare(
    entries: np.ndarray, result: Deduplicated, near: np.ndarray, examples: dict[int, int]
) -> None:
    if not len(entries):
        return
    entries = entries[np.lexsort((entries[:, 1], entries[:, 0]))]
    rows = entries[:, 1].astype(np.int64)
    trains = result.keep[rows] == TRAIN
    first = _differs_from_previous(entries[:, 0])
    starts = np.flatnonzero(first)
    mixed = np.logical_or.reduceat(trains, starts) & np.logical_or.reduceat(~trains, starts)
    group = np.cumsum(first) - 1
    held = np.flatnonzero(mixed[group] & ~trains)
    near[rows[held]] = True
    # The examples are the first rows, so that they do not depend on the order of the files.
    for place in held[np.argsort(rows[held], kind="stable")][: 8 * EXAMPLES]:
        row = int(rows[place])
        begin = starts[group[place]]
        partner = int(rows[begin + np.argmax(trains[begin:])])
        examples[row] = min(partner, examples.get(row, partner))
    for row in sorted(examples)[EXAMPLES:]:
        del examples[row]
