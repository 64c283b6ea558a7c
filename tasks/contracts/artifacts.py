"""Artifacts and sources: content by digest."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tasks.contracts.base import Contract

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class FileEntry(Contract):
    """One file of an artifact: its path below the artifact, its size in bytes, its SHA-256."""

    path: str
    size: int
    sha256: str


class Manifest(Contract):
    """The list of an artifact's files. It is written last: with it, the artifact is complete."""

    schema_version: int = 1
    kind: str
    digest: str
    files: tuple[FileEntry, ...]


class Artifact(Contract):
    """An immutable set of files in the store, named by the digest of its content.

    Attributes:
        kind: What it holds: `shard`, `dataset`, `tokens`, `model`, `scores`…
        digest: SHA-256 over the sorted manifest (relative path, size and SHA-256 of each file).
        files: Number of files.
        bytes: Their total size.
        uri: Its location, for people; the digest identifies it.
    """

    cache_key_excludes: ClassVar[frozenset[str]] = frozenset({"files", "bytes", "uri"})

    kind: str
    digest: str
    files: int
    bytes: int
    uri: str


class SourceFile(Contract):
    """One file of a source, as it is now.

    Attributes:
        path: Relative to the source's root.
        size: Bytes.
        digest: Identifies its content: a SHA-256, or the server's own identifier (an S3 ETag, a Git
            object id).
        location: A local path, or a URI pinned to its revision.
    """

    cache_key_excludes: ClassVar[frozenset[str]] = frozenset({"location"})

    path: str
    size: int
    digest: str
    location: str


class Source(Contract):
    """A data source or base model, resolved to its current content.

    Attributes:
        uri: As in the recipe.
        pinned: The same, with every movable name (a branch, a tag) replaced by an immutable one.
        digest: SHA-256 over the relative paths, sizes and digests of its files.
        files: Its files, sorted by path.
        stored_copy: The store's copy of local files, for workers on other machines; None if there
            is none.
    """

    cache_key_excludes: ClassVar[frozenset[str]] = frozenset(
        {"uri", "pinned", "files", "stored_copy"}
    )

    uri: str
    pinned: str
    digest: str
    files: tuple[SourceFile, ...] = Field(repr=False)
    stored_copy: Artifact | None = None
