"""Reads a dataset's kept examples, sorted by the hash of their inputs, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tasks.contracts.artifacts import Artifact
from tasks.runtime.context import RunContext
from tasks.storage.store import Store, open_store

_ROWS_AT_ONCE = 50_000
_INTERNAL_COLUMNS = ("raw", "split")


def dataset_shards(store: Store, dataset: Artifact) -> list[Artifact]:
    """Return a dataset's shards, in order."""
    described = orjson.loads(store.file(dataset, "dataset.json").read_bytes())
    return [Artifact.model_validate(entry["artifact"]) for entry in described["shards"]]


def write_examples(context: RunContext, dataset: Artifact, split: int, out: Path) -> Path:
    """Write the kept rows of one split as Parquet, sorted by `hash_hi`, `hash_lo` and `label`
    (for language models, `example`).

    Args:
        context: Its store holds the dataset.
        dataset: The artifact of `Loaded`.
        split: `TRAIN`, `VALIDATION` or `TEST`.
        out: The file to write. Columns: `hash_hi`, `hash_lo` (uint64), `text`, `text_pair` if
            there is one, `example` for language models, `label`, and the kept columns (strings).

    Raises:
        DamagedArtifact: A file of the dataset or of a shard is missing or differs.
    """
    import pyarrow.parquet as pq

    writer: Any = None
    try:
        for table in read_split(context, dataset, split):
            writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer:
            writer.close()
    return out


def texts_by_hash(context: RunContext, dataset: Artifact, split: int) -> dict[tuple[int, int], str]:
    """Return the text of each input of one split, by its hash (hash_hi, hash_lo).

    All texts are held in memory, so this is meant for validation and test.

    Raises:
        DamagedArtifact: As for `write_examples`.
    """
    found: dict[tuple[int, int], str] = {}
    for table in read_split(context, dataset, split):
        columns = (table[name].to_pylist() for name in ("hash_hi", "hash_lo", "text"))
        found |= {(hi, lo): text for hi, lo, text in zip(*columns, strict=True)}
    return found


def read_split(
    context: RunContext, dataset: Artifact, split: int, rows_at_once: int = _ROWS_AT_ONCE
) -> Iterator[Any]:
    """Yield the kept rows of one split as sorted `pyarrow.Table`s of bounded size.

    If the dataset has any shard, there is at least one table, so that the schema is known.

    Args, Raises: As for `write_examples`.
    """
    store = open_store(context.store)
    with np.load(store.file(dataset, "keep.npz")) as keep:
        rows = {name: np.flatnonzero(keep[name] == split) for name in keep.files}
    shards = dataset_shards(store, dataset)
    count = max(1, -(-sum(map(len, rows.values())) // rows_at_once))
    with store.scratch() as scratch:
        files = _partition(store, shards, rows, count, scratch)
        for file in files:
            yield _sorted(file)


def _partition(
    store: Store, shards: list[Artifact], rows: dict[str, np.ndarray], count: int, scratch: Path
) -> list[Path]:
    """Write the chosen rows to `count` files, one per range of hashes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [scratch / f"{number}.arrow" for number in range(count)]
    writers: list[Any] = []
    # Shards without a row of this split are skipped, except one if there are no others.
    chosen = [shard for shard in shards if len(rows[shard.digest])] or shards[:1]
    try:
        for shard in chosen:
            table = pq.read_table(store.file(shard, "rows.parquet"))
            table = table.take(pa.array(rows[shard.digest])).drop_columns(list(_INTERNAL_COLUMNS))
            if not writers:
                writers = [pa.ipc.new_file(file, table.schema) for file in files]
            width = -(-(1 << 64) // count)
            place = table["hash_hi"].to_numpy() // np.uint64(min(width, (1 << 64) - 1))
            for number, writer in enumerate(writers):
                # With a single range, 2**64 - 1 would fall outside it.
                inside = np.minimum(place, count - 1) == number
                writer.write_table(table.filter(pa.array(inside)))
    finally:
        for writer in writers:
            writer.close()
    return files if writers else []


def _sorted(file: Path) -> Any:
    import pyarrow as pa

    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    names = ["hash_hi", "hash_lo", "label"]
    # Language-model rows have equal labels, so the example breaks the tie.
    names += ["example"] if "example" in table.column_names else []
    table = table.sort_by([(name, "ascending") for name in names])
    return table.select(
        [*names[:2], *(name for name in table.column_names if name not in names[:2])]
    )
