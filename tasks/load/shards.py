"""Reads a chunk into a shard: its rows, their hashes and their splits.

A shard is a function of the chunk's content and the read settings. It does not depend on file names
or positions, so a chunk that moves to another file gives the same shard. Its files:

`rows.parquet`: the rows in order. Columns: `text`; `text_pair` if there is one; `label`; the kept
columns (all strings); `hash_hi` and `hash_lo` (hash of the inputs); `raw` (hash of all values);
`split` (1 train, 2 validation, 3 test). For language models, `example` holds the parsed row
(tasks/load/row_formats.py), `text` its input, and `label` is empty.
`index.npy`: one `INDEX` entry per row, sorted by hash.
`near.npy`: uint64, shape (rows, 8), MinHash band keys (tasks/load/minhash.py).
`stats.json`: counts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tasks.contracts.task_tables import GROUP_COLUMN
from tasks.load.minhash import band_keys
from tasks.load.read_settings import ReadJob, ReadSettings
from tasks.load.readers import Rows, read_rows
from tasks.load.splits import SPLIT_NAMES, input_hash, normal_form, split_of

INDEX = np.dtype(
    [
        ("hash_hi", "<u8"),
        ("hash_lo", "<u8"),
        ("raw", "<u8"),
        ("label_hash", "<u8"),
        ("row", "<u4"),
        ("split", "u1"),
    ]
)


def read_chunk(job: ReadJob) -> list[Path]:
    """Read a chunk and write its shards; a large columnar chunk gives several, in order.

    Returns:
        The shards' folders.

    Raises:
        BadData: A row cannot be used; the error names file and row.
    """
    folders = []
    for number, rows in enumerate(read_rows(job)):
        folder = Path(job.out) / str(number)
        folder.mkdir(parents=True)
        write_shard(rows, job.settings, folder)
        folders.append(folder)
    return folders


def label_hash(label: str) -> int:
    """Return the 64-bit hash of a label, or of an example's answer."""
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little")


def write_shard(rows: Rows, settings: ReadSettings, folder: Path) -> None:
    """Write rows as the files of a shard."""
    normal = [normal_form(text) for text in rows.texts]
    pairs = [normal_form(text) for text in rows.pairs]
    both = list(zip(normal, pairs or [""] * len(normal), strict=True))
    hashes = [input_hash(text, pair) for text, pair in both]
    index = np.empty(len(hashes), INDEX)
    halves = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
    index["hash_hi"], index["hash_lo"] = halves[:, 0], halves[:, 1]
    index["raw"] = _raw_hashes(rows)
    known = {label: label_hash(label) for label in set(rows.answers or rows.labels)}
    index["label_hash"] = [known[label] for label in rows.answers or rows.labels]
    index["row"] = np.arange(len(hashes))
    index["split"] = _splits(rows, hashes, settings)
    _write_rows(rows, index, settings, folder / "rows.parquet")
    # Sorted by all fields, so that rows with equal hashes do not keep the order of the source.
    np.save(folder / "index.npy", index[np.lexsort([index[name] for name in _SORT_KEYS])])
    compared = [f"{text} {pair}" for text, pair in both] if pairs else normal
    np.save(folder / "near.npy", band_keys(compared))
    (folder / "stats.json").write_bytes(orjson.dumps(_stats(rows, index)))


_SORT_KEYS = ("row", "raw", "label_hash", "hash_lo", "hash_hi")


def _raw_hashes(rows: Rows) -> np.ndarray:
    columns: list[Iterable[Any]] = [rows.texts, rows.labels]
    columns += [rows.pairs] if rows.pairs else []
    columns += [rows.examples] if rows.examples else []
    columns += [rows.kept] if rows.kept else []
    columns += [rows.groups] if rows.groups else []
    joined = b"".join(
        hashlib.blake2b(orjson.dumps(row), digest_size=8).digest()
        for row in zip(*columns, strict=True)
    )
    return np.frombuffer(joined, "<u8")


def _splits(rows: Rows, hashes: list[bytes], settings: ReadSettings) -> list[int]:
    if rows.splits:
        return rows.splits
    if settings.fixed_split:
        return [settings.fixed_split] * len(hashes)
    if rows.groups:
        # A row without a group is a group of its own.
        return [
            split_of(b"group:" + group.encode() if group else each, settings.split)
            for group, each in zip(rows.groups, hashes, strict=True)
        ]
    return [split_of(each, settings.split) for each in hashes]


def _write_rows(rows: Rows, index: np.ndarray, settings: ReadSettings, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"text": pa.array(rows.texts, pa.string())}
    if rows.pairs:
        columns["text_pair"] = pa.array(rows.pairs, pa.string())
    if rows.examples:
        columns["example"] = pa.array(rows.examples, pa.string())
    columns["label"] = pa.array(rows.labels, pa.string())
    for number, name in enumerate(settings.keep_columns):
        columns[name] = pa.array([kept[number] for kept in rows.kept], pa.string())
    if rows.groups:
        columns[GROUP_COLUMN] = pa.array(rows.groups, pa.string())
    for name in ("hash_hi", "hash_lo", "raw", "split"):
        columns[name] = pa.array(np.ascontiguousarray(index[name]))
    pq.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        use_dictionary=["label", *settings.keep_columns],
        write_statistics=False,
    )


def _stats(rows: Rows, index: np.ndarray) -> dict[str, Any]:
    pairs = rows.pairs or [""] * len(rows.texts)
    lengths = (len(text) + len(pair) for text, pair in zip(rows.texts, pairs, strict=True))
    return {
        "rows": len(rows.texts),
        "empty": {"rows": rows.empty, "first": rows.first_empty},
        **(_language_stats(rows) if rows.examples else {"labels": _label_stats(rows, index)}),
        "lengths": _histogram(lengths),
        "columns": rows.columns,
        "owners": {
            name: [values.total(), len(values)] for name, values in sorted(rows.owners.items())
        },
        "present": {name: rows.present[name] for name in sorted(rows.present)},
    }


def _label_stats(rows: Rows, index: np.ndarray) -> dict[str, Any]:
    counts: dict[str, Counter] = {}
    first: dict[str, int] = {}
    for label, split, position in zip(rows.labels, index["split"], rows.positions, strict=True):
        counts.setdefault(label, Counter())[int(split)] += 1
        first.setdefault(label, position)
    return {
        label: {"splits": [counts[label][split] for split in SPLIT_NAMES], "at": first[label]}
        for label in sorted(counts)
    }


def _language_stats(rows: Rows) -> dict[str, Any]:
    return {
        "row_formats": dict(sorted(Counter(rows.row_formats).items())),
        "answer_lengths": _histogram(rows.answer_lengths),
    }


def _histogram(lengths: Iterable[int]) -> dict[str, int]:
    bins = Counter(map(length_bin, lengths))
    return {str(each): bins[each] for each in sorted(bins)}


_BINS_PER_OCTAVE = 16  # so a bin is at most 1/16 of its start wide


def length_bin(length: int) -> int:
    """Return the bin of a length: exact below 32, then 16 bins per octave."""
    if length < 2 * _BINS_PER_OCTAVE:
        return length
    octave = length.bit_length() - _BINS_PER_OCTAVE.bit_length()
    return (octave + 1) * _BINS_PER_OCTAVE + (length >> octave) - _BINS_PER_OCTAVE


def bin_start(number: int) -> int:
    """Return the smallest length in a bin."""
    if number < 2 * _BINS_PER_OCTAVE:
        return number
    octave = number // _BINS_PER_OCTAVE - 1
    return (number % _BINS_PER_OCTAVE + _BINS_PER_OCTAVE) << octave
