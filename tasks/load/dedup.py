"""Settles what becomes of each row of all shards: which are duplicates, leaks, conflicts.

Every shard brings a list of its rows sorted by the hash of their inputs. The lists are merged a
range of hashes at a time, so memory does not grow with the data, save for one byte a row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tasks.load.shards import INDEX
from tasks.load.splits import TEST, TRAIN

ROWS_AT_ONCE = 200_000
"""Rows of one range of hashes, about."""
BAND_ENTRIES_AT_ONCE = 500_000
EXAMPLES = 5
_MOST_FILES = 256


@dataclass
class Deduplicated:
    """What became of the rows.

    Attributes:
        keep: A byte a row, shard after shard: 0 dropped, else the split it is kept in.
        starts: Where each shard's rows begin in `keep`, and the number of all rows.
        counts: Kept rows by label hash and split; where labels are not counted, the hash is 0.
        duplicates: Rows dropped because another has the same inputs and label.
        leaks: Rows dropped by split, because a split that judges has the same inputs.
        conflicts: Inputs that are kept with more than one label.
        conflict_rows: The first few of these, as tuples of rows.
        near: Kept validation and test rows, by split, that are near a training row.
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
    near: Counter = field(default_factory=Counter)
    near_rows: list[tuple[int, int]] = field(default_factory=list)
    test_digest: str = ""

    def place(self, row: int) -> tuple[int, int]:
        """The shard's number and the row's number in it."""
        shard = int(np.searchsorted(self.starts, row, "right")) - 1
        return shard, row - int(self.starts[shard])


def deduplicate(
    indexes: list[Path], seen: Path, rows_at_once: int = ROWS_AT_ONCE, by_label: bool = True
) -> Deduplicated:
    """Decide for every row whether it is kept.

    Of rows with equal inputs, only those of the split that judges most strictly stay (test before
    validation before train); of these, one for each label: that with the least hash of its values,
    whatever the order of the source.

    Args:
        indexes: Each shard's `index.npy`, in reading order.
        seen: Where to write the sorted hashes of the inputs of train and validation.
        rows_at_once: Rows that are looked at together, about.
        by_label: Whether kept rows are counted by label: memory grows with their number.
    """
    sizes = [np.load(path, mmap_mode="r").shape[0] for path in indexes]
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    settled = Deduplicated(np.zeros(int(starts[-1]), np.uint8), starts)
    test = hashlib.sha256()
    raw_seen = seen.with_suffix(".raw")
    with open(raw_seen, "wb") as out:
        for rows, owners in _ranges(indexes, starts, rows_at_once):
            _settle_range(rows, owners, settled, by_label, test, out)
    _as_array(raw_seen, seen)
    settled.test_digest = test.hexdigest()
    return settled


def _ranges(indexes: list[Path], starts: np.ndarray, rows_at_once: int):
    """All index entries, a range of hashes at a time, each with its row among all rows."""
    count = max(1, -(-int(starts[-1]) // rows_at_once))
    edges = [(number << 64) // count for number in range(1, count)]
    # A list of Python integers, for 2**64 / 3 has no exact place among floats.
    edges = np.array(edges, np.uint64)
    bounds = np.zeros((len(indexes), count + 1), np.int64)
    offsets = []
    for number, path in enumerate(indexes):
        entries = np.load(path, mmap_mode="r")
        bounds[number, 1:-1] = np.searchsorted(entries["hash_hi"], edges)
        bounds[number, -1] = len(entries)
        offsets.append(entries.offset)
    for place in range(count):
        parts, owners = [], []
        for number in np.flatnonzero(bounds[:, place] < bounds[:, place + 1]).tolist():
            low, high = bounds[number, place : place + 2].tolist()
            # Read, not mapped: mapped pages would stay in memory until the end of the range.
            start = offsets[number] + low * INDEX.itemsize
            part = np.fromfile(indexes[number], INDEX, high - low, offset=start)
            parts.append(part)
            owners.append(part["row"].astype(np.int64) + starts[number])
        if parts:
            yield np.concatenate(parts), np.concatenate(owners)


def _settle_range(
    rows: np.ndarray, owners: np.ndarray, settled: Deduplicated, by_label: bool, test, out
) -> None:
    if not len(rows):
        return
    order = np.lexsort((owners, rows["raw"], rows["label_hash"], rows["hash_lo"], rows["hash_hi"]))
    rows, owners = rows[order], owners[order]
    first = _changes(rows["hash_hi"], rows["hash_lo"])
    inputs = np.cumsum(first) - 1
    best = np.maximum.reduceat(rows["split"], np.flatnonzero(first))
    stays = rows["split"] == best[inputs]
    settled.leaks.update(Counter(rows["split"][~stays].tolist()))
    rows, owners, inputs = rows[stays], owners[stays], inputs[stays]
    chosen = _changes(inputs, rows["label_hash"])
    settled.duplicates += int(len(rows) - chosen.sum())
    rows, owners, inputs = rows[chosen], owners[chosen], inputs[chosen]
    settled.keep[owners] = rows["split"]
    labels = rows["label_hash"] if by_label else np.zeros(len(rows), np.uint64)
    pairs = np.stack([labels, rows["split"].astype(np.uint64)], axis=1)
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    for (label, split), number in zip(unique.tolist(), counts.tolist(), strict=True):
        settled.counts[label, split] += number
    _note_conflicts(inputs, owners, settled)
    hashes = np.stack([rows["hash_hi"], rows["hash_lo"], rows["raw"]], axis=1).astype("<u8")
    judges = rows["split"] == TEST
    test.update(np.ascontiguousarray(hashes[judges]).tobytes())
    learnt = ~judges & _changes(inputs)
    out.write(np.ascontiguousarray(hashes[learnt, :2]).tobytes())


def _changes(*columns: np.ndarray) -> np.ndarray:
    """Where a row differs from the one before it; true for the first."""
    differs = np.ones(len(columns[0]), bool)
    if len(differs):
        differs[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return differs


def _note_conflicts(inputs: np.ndarray, owners: np.ndarray, settled: Deduplicated) -> None:
    starts = np.flatnonzero(_changes(inputs))
    sizes = np.diff(np.append(starts, len(inputs)))
    several = np.flatnonzero(sizes > 1)
    settled.conflicts += len(several)
    for number in several[: EXAMPLES - len(settled.conflict_rows)]:
        start = starts[number]
        settled.conflict_rows.append(tuple(owners[start : start + sizes[number]].tolist()))


def _as_array(raw: Path, path: Path) -> None:
    pairs = raw.stat().st_size // 16
    with open(path, "wb") as out:
        header = {"descr": "<u8", "fortran_order": False, "shape": (pairs, 2)}
        np.lib.format.write_array_header_1_0(out, header)
        with open(raw, "rb") as data:
            while block := data.read(1 << 20):
                out.write(block)
    raw.unlink()


def find_near(
    bands: list[Path], settled: Deduplicated, scratch: Path, at_once: int = BAND_ENTRIES_AT_ONCE
) -> None:
    """Count the kept validation and test rows that share a MinHash band with a training row.

    Band keys are spread over files by their highest bits, and one file is looked at at a time.

    Args:
        bands: Each shard's `near.npy`, in reading order.
        settled: What was settled; `near` and `near_rows` are filled in.
        scratch: An empty folder.
        at_once: Band entries that are looked at together, about.
    """
    columns = np.load(bands[0], mmap_mode="r").shape[1] if bands else 0
    count = max(1, min(_MOST_FILES, -(-int(settled.starts[-1]) * columns // at_once)))
    files = [open(scratch / f"bands-{number}", "w+b") for number in range(count)]  # noqa: SIM115
    try:
        for number, path in enumerate(bands):
            _spread(np.load(path), settled, number, files)
        near = np.zeros(len(settled.keep), bool)
        examples: dict[int, int] = {}
        for file in files:
            file.seek(0)
            entries = np.fromfile(file, np.uint64).reshape(-1, 2)
            _compare(entries, settled, near, examples)
    finally:
        for file in files:
            file.close()
    settled.near.update(Counter(settled.keep[near].tolist()))
    settled.near_rows = sorted(examples.items())


def _spread(keys: np.ndarray, settled: Deduplicated, shard: int, files: list) -> None:
    start, stop = settled.starts[shard], settled.starts[shard + 1]
    kept = np.flatnonzero(settled.keep[start:stop])
    # Equal keys of different bands mean nothing: the band's number goes into the key.
    salt = np.arange(keys.shape[1], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    entries = np.empty((len(kept), keys.shape[1], 2), np.uint64)
    entries[:, :, 0] = keys[kept] ^ salt
    entries[:, :, 1] = (kept + start).astype(np.uint64)[:, None]
    entries = entries.reshape(-1, 2)
    width = np.uint64(-(-(1 << 64) // len(files)) if len(files) > 1 else (1 << 64) - 1)
    goes_to = entries[:, 0] // width if len(files) > 1 else np.zeros(len(entries), np.uint64)
    for number, file in enumerate(files):
        file.write(entries[goes_to == number].tobytes())


def _compare(
    entries: np.ndarray, settled: Deduplicated, near: np.ndarray, examples: dict[int, int]
) -> None:
    if not len(entries):
        return
    entries = entries[np.lexsort((entries[:, 1], entries[:, 0]))]
    rows = entries[:, 1].astype(np.int64)
    trains = settled.keep[rows] == TRAIN
    first = _changes(entries[:, 0])
    starts = np.flatnonzero(first)
    mixed = np.logical_or.reduceat(trains, starts) & np.logical_or.reduceat(~trains, starts)
    group = np.cumsum(first) - 1
    held = np.flatnonzero(mixed[group] & ~trains)
    near[rows[held]] = True
    # Examples are those of the first rows, so that they do not depend on the order of the files.
    for place in held[np.argsort(rows[held], kind="stable")][: 8 * EXAMPLES]:
        row = int(rows[place])
        begin = starts[group[place]]
        partner = int(rows[begin + np.argmax(trains[begin:])])
        examples[row] = min(partner, examples.get(row, partner))
    for row in sorted(examples)[EXAMPLES:]:
        del examples[row]
