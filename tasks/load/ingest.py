"""Turns every file of a data source into shards, reusing the shards of content seen before.

An unchanged file is recognised by its digest. A changed file is chunked again, which costs one
scan of its bytes, and only its new chunks are parsed.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.contracts.artifacts import Artifact, Source, SourceFile
from tasks.contracts.errors import BadData
from tasks.contracts.recipe_data import DataRecipe, Task
from tasks.load.chunk_tables import chunk_arrow, chunk_parquet
from tasks.load.chunk_text import array_to_lines, chunk_csv, chunk_lines, chunk_text_files
from tasks.load.chunking import Chunk
from tasks.load.encodings import check_encoding, too_long
from tasks.load.json_files import refuse_wrapped_rows
from tasks.load.read_parquet_arrow import arrow_schema, bad_table, check_table, parquet_schema
from tasks.load.read_pool import PendingRead, ReadPool
from tasks.load.read_settings import Format, ReadJob, ReadSettings
from tasks.load.row_formats import CLASSIFICATION
from tasks.load.source_format import file_format, labelled_files
from tasks.load.splits import split_by_name
from tasks.runtime.context import RunContext
from tasks.runtime.substep_cache import SubstepCache
from tasks.storage.sources import fetch_file
from tasks.storage.store import open_store

LIBRARIES = ("pyarrow", "orjson", "numpy")

# Not tasks.load.step: what is done with all rows together does not change a shard.
_CODE = ("tasks.load.shards",)


@dataclass(frozen=True)
class SourceShard:
    """A shard and its place in the source.

    Attributes:
        artifact: The shard.
        name: The file that it was read from.
        first: Where its chunk starts in that file.
        files: For text folders: the chunk's files.
    """

    artifact: Artifact
    name: str
    first: int
    files: tuple[SourceFile, ...] = ()

    def where(self, position: int) -> str:
        """Return file and row of a position in the chunk, for messages."""
        if self.files:
            return self.files[position].path
        return f"{self.name}:{self.first + position + 1}"


@dataclass
class _CachedShards:
    """Shards of content that was read before."""

    shards: list[SourceShard]


@dataclass
class _EndOfFile:
    """All chunks of a file are done: its shards can be recorded and its copy removed."""

    key: str | None
    folder: Path | None


_Item = _CachedShards | PendingRead | _EndOfFile


def ingest(
    data: DataRecipe,
    source: Source,
    context: RunContext,
    scratch: Path,
    task: Task = CLASSIFICATION,
    fixed_split: int = 0,
) -> tuple[list[SourceShard], set[str]]:
    """Return the shards of a source, reading only content that was never read before.

    Args:
        data: How to read the source.
        source: What to read.
        context: Where shards are stored, and whether to read everything again.
        scratch: A folder that the caller removes.
        task: What the rows are for.
        fixed_split: The split of every row; 0: as `data.split` says.

    Returns:
        The shards in the source's order, and the digests of those that this call read.

    Raises:
        BadData, BadRecipe: The data cannot be read.
        NotFound, NoAccess, HubFailed, StorageFailed: The data cannot be fetched.
    """
    return _Ingestion(data, source, context, scratch, task, fixed_split).run()


class _Ingestion:
    """Plans what to read, file by file, and collects the shards in the same order."""

    def __init__(
        self,
        data: DataRecipe,
        source: Source,
        context: RunContext,
        scratch: Path,
        task: Task,
        fixed_split: int,
    ) -> None:
        self._data, self._source, self._scratch, self._task = data, source, scratch, task
        self._fixed_split = fixed_split
        self._store = open_store(context.store)
        self._file_cache = SubstepCache("file", "load", context, _CODE, LIBRARIES)
        self._chunk_cache = SubstepCache("shard", "load", context, _CODE, LIBRARIES)
        self._folders = 0
        self._new: set[str] = set()
        self._shards: list[SourceShard] = []
        self._file_start = 0

    def run(self) -> tuple[list[SourceShard], set[str]]:
        format = file_format(self._data, self._source)
        plan = self._plan_folders() if format == "text-folders" else self._plan_files(format)
        with ReadPool() as pool:
            queue: deque[_Item] = deque()
            for item in plan:
                queue.append(item)
                if isinstance(item, PendingRead):
                    pool.submit(item)
                while pool.is_full:
                    self._collect(queue.popleft(), pool)
            while queue:
                self._collect(queue.popleft(), pool)
        if not self._shards:
            raise BadData(
                f"data.uri {self._source.uri}", "no rows", "at least one row", "add some data"
            )
        return self._shards, self._new

    # Planning

    def _plan_files(self, format: Format) -> Iterator[_Item]:
        for file in self._source.files:
            suffix = PurePosixPath(file.path).suffix.lower()
            settings = ReadSettings.of(
                self._data, format, suffix, self._split_of_file(file), self._task
            )
            if not file.size:
                raise BadData(file.path, "an empty file", "a file with rows", "fill or remove it")
            yield from self._plan_file(file, settings)

    def _plan_file(self, file: SourceFile, settings: ReadSettings) -> Iterator[_Item]:
        contents = {
            "digest": file.digest,
            "size": file.size,
            "max_record_bytes": settings.max_record_bytes,
        }
        key = self._file_cache.key({**contents, "settings": settings.key_part()})
        cached = self._file_cache.get(key)
        if cached is not None:
            yield _CachedShards([_source_shard(entry, file.path) for entry in cached["shards"]])
            yield _EndOfFile(None, None)
            return
        folder = self._new_folder()
        path = fetch_file(file, folder)
        if settings.format == "jsonl":
            refuse_wrapped_rows(path, file.path, settings.columns)
            path = array_to_lines(
                path,
                folder / "array.jsonl",
                file.path,
                settings.max_record_bytes,
                settings.encoding,
            )
        for chunk in chunk_file(path, file.path, settings):
            yield self._plan_chunk(chunk, settings, file.path, path)
        yield _EndOfFile(key, folder)

    def _plan_chunk(self, chunk: Chunk, settings: ReadSettings, name: str, path: Path) -> _Item:
        key = self._chunk_key(chunk, settings)
        cached = self._chunk_cache.get(key)
        if cached is None:
            job = ReadJob(chunk, settings, name, str(path), str(self._new_folder()))
            return PendingRead(job, key, ())
        artifacts = [Artifact.model_validate(entry["artifact"]) for entry in cached["shards"]]
        return _CachedShards([SourceShard(each, name, chunk.first) for each in artifacts])

    def _plan_folders(self) -> Iterator[_Item]:
        """Plan text folders: a chunk holds many files, and the list of files decides its bounds."""
        check_encoding(self._data.encoding)
        max_bytes = int(self._data.max_record_mb * 1e6)
        by_split: dict[int, list[tuple[str, SourceFile]]] = {}
        for label, file in labelled_files(self._source, self._task == CLASSIFICATION):
            if file.size > max_bytes:
                raise too_long(file.path, max_bytes)
            by_split.setdefault(self._split_of_file(file), []).append((label, file))
        for split, files in sorted(by_split.items()):
            settings = ReadSettings.of(self._data, "text-folders", "", split, self._task)
            listed = [(label, file.digest, file.size) for label, file in files]
            for chunk in chunk_text_files(listed):
                yield self._plan_texts(chunk, settings, files[chunk.start : chunk.stop])

    def _plan_texts(
        self, chunk: Chunk, settings: ReadSettings, labelled: list[tuple[str, SourceFile]]
    ) -> _Item:
        key = self._chunk_key(chunk, settings)
        files = tuple(file for _, file in labelled)
        cached = self._chunk_cache.get(key)
        if cached is not None:
            artifacts = [Artifact.model_validate(entry["artifact"]) for entry in cached["shards"]]
            return _CachedShards([SourceShard(each, "", chunk.first, files) for each in artifacts])
        folder = self._new_folder()
        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(lambda file: str(fetch_file(file, folder / "files")), files))
        to_read = tuple(
            (label, file.path, path) for (label, file), path in zip(labelled, paths, strict=True)
        )
        return PendingRead(ReadJob(chunk, settings, "", "", str(folder), to_read), key, files)

    def _chunk_key(self, chunk: Chunk, settings: ReadSettings) -> str:
        return self._chunk_cache.key({"chunk": chunk.digest, "settings": settings.key_part()})

    def _split_of_file(self, file: SourceFile) -> int:
        """Return the split of all of a file's rows; 0 if it is decided row by row."""
        if self._fixed_split or self._data.split.by != "files":
            return self._fixed_split
        split = split_by_name(file.path)
        if not split:
            raise BadData(
                file.path,
                "a file name without a split (data.split.by is files)",
                "a name with train, validation or test in it, such as train.jsonl",
                "rename the file, or set data.split.by to hash",
            )
        return split

    def _new_folder(self) -> Path:
        self._folders += 1
        folder = self._scratch / str(self._folders)
        folder.mkdir()
        return folder

    # Collecting

    def _collect(self, item: _Item, pool: ReadPool) -> None:
        """Finish one item. Items are collected in the order of the plan."""
        if isinstance(item, _CachedShards):
            self._shards += item.shards
        elif isinstance(item, PendingRead):
            self._shards += self._store_shards(item, pool.result(item))
        else:
            self._finish_file(item)

    def _store_shards(self, pending: PendingRead, folders: list[Path]) -> list[SourceShard]:
        artifacts = [self._store.put("shard", folder) for folder in folders]
        entries = [{"artifact": each.model_dump(mode="json")} for each in artifacts]
        self._chunk_cache.put(pending.key, {"shards": entries})
        self._new.update(each.digest for each in artifacts)
        job = pending.job
        shutil.rmtree(job.out)
        return [SourceShard(each, job.name, job.chunk.first, pending.files) for each in artifacts]

    def _finish_file(self, end: _EndOfFile) -> None:
        shards = self._shards[self._file_start :]
        self._file_start = len(self._shards)
        if end.key is not None:
            entries = [
                {"artifact": each.artifact.model_dump(mode="json"), "first": each.first}
                for each in shards
            ]
            self._file_cache.put(end.key, {"shards": entries})
        if end.folder is not None:
            shutil.rmtree(end.folder)


def _source_shard(entry: dict[str, Any], name: str) -> SourceShard:
    return SourceShard(Artifact.model_validate(entry["artifact"]), name, entry["first"])


def chunk_file(path: Path, name: str, settings: ReadSettings) -> Iterator[Chunk]:
    """Split one file of any format except text folders into chunks.

    Raises:
        BadData: The file is not in this format, or lacks a column.
    """
    import pyarrow as pa

    if settings.format == "jsonl":
        yield from chunk_lines(path, name, settings.max_record_bytes, settings.encoding)
    elif settings.format == "csv":
        yield from chunk_csv(path, name, settings.max_record_bytes, settings.encoding)
    else:
        parquet = settings.format == "parquet"
        try:
            schema = parquet_schema(path) if parquet else arrow_schema(path)
            schema_key = check_table(schema, settings, name)
            columns = tuple(each for each in settings.columns if each in schema.names)
            chunks = chunk_parquet if parquet else chunk_arrow
            yield from chunks(path, columns, schema_key)
        except (pa.ArrowInvalid, OSError) as error:
            raise bad_table(name, error) from None
