"""Finds or makes the shards of every file of a data source.

What was read before is not read again: an unchanged file is known by its digest, and a changed one
is cut again, which costs a scan of its bytes, and only pieces that are new are parsed.
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
from tasks.load.chunk_tables import cut_arrow, cut_parquet
from tasks.load.chunk_text import array_to_lines, cut_csv, cut_files, cut_lines
from tasks.load.chunking import Chunk
from tasks.load.encodings import check_encoding, too_long
from tasks.load.read_pool import Pool, Todo
from tasks.load.read_settings import Format, Job, Reading
from tasks.load.read_tables import arrow_schema, bad_table, check_table, parquet_schema
from tasks.load.row_formats import CLASSES
from tasks.load.source_format import file_format, labelled_files
from tasks.load.splits import split_by_name
from tasks.runtime.context import RunContext
from tasks.runtime.substep_cache import SubstepCache
from tasks.storage.sources import fetch_file
from tasks.storage.store import open_store

LIBRARIES = ("pyarrow", "orjson", "numpy")

# Not of tasks.load.step: what is done with all rows together does not change a shard.
_CODE = ("tasks.load.shards",)


@dataclass(frozen=True)
class Read:
    """A shard as it was met in the source.

    Attributes:
        artifact: The shard.
        name: Its file.
        first: Where its piece begins there.
        files: For text folders: the piece's files.
    """

    artifact: Artifact
    name: str
    first: int
    files: tuple[SourceFile, ...] = ()

    def where(self, position: int) -> str:
        """File and row, for messages, of a position in the piece."""
        if self.files:
            return self.files[position].path
        return f"{self.name}:{self.first + position + 1}"


@dataclass
class _Known:
    """Shards that need not be read."""

    shards: list[Read]


@dataclass
class _End:
    """The end of a file that was cut: its shards can be remembered, its copy removed."""

    key: str | None
    folder: Path | None


_Item = _Known | Todo | _End


def ingest(
    data: DataRecipe,
    source: Source,
    context: RunContext,
    scratch: Path,
    task: Task = CLASSES,
    split_as: int = 0,
) -> tuple[list[Read], set[str]]:
    """The shards of a source.

    Args:
        data: How to read it.
        source: What to read.
        context: Where shards are kept, and whether they are to be read anew.
        scratch: A folder that the caller removes.
        task: What they are read for.
        split_as: The split of every row; 0: as `data.split` says.

    Returns:
        The shards in the source's order, and the digests of those that were read by this call.

    Raises:
        BadData, BadRecipe: The data cannot be read.
        NotFound, NoAccess, HubFailed, StorageFailed: They cannot be fetched.
    """
    return _Gatherer(data, source, context, scratch, task, split_as).gather()


class _Gatherer:
    def __init__(
        self,
        data: DataRecipe,
        source: Source,
        context: RunContext,
        scratch: Path,
        task: Task,
        split_as: int,
    ) -> None:
        self._data, self._source, self._scratch, self._task = data, source, scratch, task
        self._all_as = split_as
        self._store = open_store(context.store)
        self._files = SubstepCache("file", "load", context, _CODE, LIBRARIES)
        self._pieces = SubstepCache("shard", "load", context, _CODE, LIBRARIES)
        self._folders = 0
        self._new: set[str] = set()
        self._found: list[Read] = []
        self._file_begins = 0

    def gather(self) -> tuple[list[Read], set[str]]:
        format = file_format(self._data, self._source)
        plan = self._plan_folders() if format == "text-folders" else self._plan_files(format)
        with Pool() as pool:
            waiting: deque[_Item] = deque()
            for item in plan:
                waiting.append(item)
                if isinstance(item, Todo):
                    pool.add(item)
                while pool.is_full:
                    self._settle(waiting.popleft(), pool)
            while waiting:
                self._settle(waiting.popleft(), pool)
        if not self._found:
            raise BadData(
                f"data.uri {self._source.uri}", "no rows", "at least one row", "add some data"
            )
        return self._found, self._new

    def _plan_files(self, format: Format) -> Iterator[_Item]:
        for file in self._source.files:
            suffix = PurePosixPath(file.path).suffix.lower()
            reading = Reading.of(self._data, format, suffix, self._split_as(file), self._task)
            if not file.size:
                raise BadData(file.path, "an empty file", "a file with rows", "fill or remove it")
            yield from self._plan_file(file, reading)

    def _plan_file(self, file: SourceFile, reading: Reading) -> Iterator[_Item]:
        contents = {"digest": file.digest, "size": file.size, "limit": reading.limit}
        key = self._files.key({**contents, "reading": reading.key_part()})
        known = self._files.get(key)
        if known is not None:
            yield _Known([_read_again(entry, file.path) for entry in known["shards"]])
            yield _End(None, None)
            return
        folder = self._folder()
        path = fetch_file(file, folder)
        if reading.format == "jsonl":
            lines = folder / "array.jsonl"
            path = array_to_lines(path, lines, file.path, reading.limit, reading.encoding)
        for piece in cut_file(path, file.path, reading):
            yield self._plan_piece(piece, reading, file.path, path)
        yield _End(key, folder)

    def _plan_piece(self, piece: Chunk, reading: Reading, name: str, path: Path) -> _Item:
        key = self._piece_key(piece, reading)
        known = self._pieces.get(key)
        if known is None:
            return Todo(Job(piece, reading, name, str(path), str(self._folder())), key, ())
        artifacts = [Artifact.model_validate(entry["artifact"]) for entry in known["shards"]]
        return _Known([Read(each, name, piece.first) for each in artifacts])

    def _plan_folders(self) -> Iterator[_Item]:
        """Text folders: a piece has many files, and is cut from their list alone."""
        check_encoding(self._data.encoding)
        limit = int(self._data.max_record_mb * 1e6)
        by_split: dict[int, list[tuple[str, SourceFile]]] = {}
        for label, file in labelled_files(self._source, self._task == CLASSES):
            if file.size > limit:
                raise too_long(file.path, limit)
            by_split.setdefault(self._split_as(file), []).append((label, file))
        for split, files in sorted(by_split.items()):
            reading = Reading.of(self._data, "text-folders", "", split, self._task)
            for piece in cut_files([(label, file.digest, file.size) for label, file in files]):
                yield self._plan_texts(piece, reading, files[piece.start : piece.stop])

    def _plan_texts(
        self, piece: Chunk, reading: Reading, files: list[tuple[str, SourceFile]]
    ) -> _Item:
        key = self._piece_key(piece, reading)
        plain = tuple(file for _, file in files)
        known = self._pieces.get(key)
        if known is not None:
            artifacts = [Artifact.model_validate(entry["artifact"]) for entry in known["shards"]]
            return _Known([Read(each, "", piece.first, plain) for each in artifacts])
        folder = self._folder()
        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(lambda file: str(fetch_file(file, folder / "files")), plain))
        named = tuple(
            (label, file.path, path) for (label, file), path in zip(files, paths, strict=True)
        )
        return Todo(Job(piece, reading, "", "", str(folder), named), key, plain)

    def _piece_key(self, piece: Chunk, reading: Reading) -> str:
        return self._pieces.key({"piece": piece.digest, "reading": reading.key_part()})

    def _split_as(self, file: SourceFile) -> int:
        if self._all_as or self._data.split.by != "files":
            return self._all_as
        split = split_by_name(file.path)
        if not split:
            raise BadData(
                file.path,
                "a name that says no split (data.split.by is files)",
                "a name with train, validation or test in it, such as train.jsonl",
                "rename the file, or set data.split.by to hash",
            )
        return split

    def _folder(self) -> Path:
        self._folders += 1
        folder = self._scratch / str(self._folders)
        folder.mkdir()
        return folder

    def _settle(self, item: _Item, pool: Pool) -> None:
        """Take one item to its end. Items come in the order of the plan."""
        if isinstance(item, _Known):
            self._found += item.shards
        elif isinstance(item, Todo):
            self._found += self._keep(item, pool.result(item))
        else:
            self._end_file(item)

    def _keep(self, todo: Todo, folders: list[Path]) -> list[Read]:
        artifacts = [self._store.put("shard", folder) for folder in folders]
        entries = [{"artifact": each.model_dump(mode="json")} for each in artifacts]
        self._pieces.put(todo.key, {"shards": entries})
        self._new.update(each.digest for each in artifacts)
        shutil.rmtree(todo.job.out)
        first = todo.job.piece.first
        return [Read(each, todo.job.name, first, todo.files) for each in artifacts]

    def _end_file(self, end: _End) -> None:
        mine = self._found[self._file_begins :]
        self._file_begins = len(self._found)
        if end.key is not None:
            entries = [
                {"artifact": each.artifact.model_dump(mode="json"), "first": each.first}
                for each in mine
            ]
            self._files.put(end.key, {"shards": entries})
        if end.folder is not None:
            shutil.rmtree(end.folder)


def _read_again(entry: dict[str, Any], name: str) -> Read:
    return Read(Artifact.model_validate(entry["artifact"]), name, entry["first"])


def cut_file(path: Path, name: str, reading: Reading) -> Iterator[Chunk]:
    """Cut one file of any format but text folders.

    Raises:
        BadData: It is no such file, or lacks a column.
    """
    import pyarrow as pa

    if reading.format == "jsonl":
        yield from cut_lines(path, name, reading.limit, reading.encoding)
    elif reading.format == "csv":
        yield from cut_csv(path, name, reading.limit, reading.encoding)
    else:
        parquet = reading.format == "parquet"
        try:
            schema = parquet_schema(path) if parquet else arrow_schema(path)
            salt = check_table(schema, reading, name)
            columns = tuple(each for each in reading.columns if each in schema.names)
            yield from (cut_parquet if parquet else cut_arrow)(path, columns, salt)
        except (pa.ArrowInvalid, OSError) as error:
            raise bad_table(name, error) from None
