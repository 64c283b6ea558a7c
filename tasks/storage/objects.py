"""Named byte objects in a folder or under an S3 prefix, used by the store, the deployment log and
the release targets.

Both backends have the same operations. Two are conditional (`create` and `replace`), so the loser
of a race is notified and overwrites nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tasks.contracts.errors import BadRecipe, NotFound
from tasks.storage.folders import (
    file_sha256,
    flush,
    locked,
    make_folder,
    rename,
    sweep,
    write_errors,
)
from tasks.storage.s3 import s3_client, s3_errors

_STAGING = ".staging"
_READS = 5

Content = TypeVar("Content")


class Objects(Protocol):
    """Byte objects under a root URI. Paths are relative, with `/` as separator."""

    root: str

    def read(self, path: str) -> tuple[bytes, str] | None:
        """Return an object's bytes and a tag that changes with them; None if it does not exist."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write an object atomically; an existing one is overwritten."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write an object only if it does not exist; return whether it was written."""
        ...

    def replace(self, path: str, data: bytes, seen: str | None) -> bool:
        """Write an object only if its tag is still `seen` (None: only if it does not exist); return
        whether it was written."""
        ...

    def upload(self, path: str, file: Path, keep: bool = False) -> None:
        """Write a local file's bytes atomically. Unless it is to be kept, the file may be moved
        instead of copied."""
        ...

    def download(self, path: str, file: Path) -> None:
        """Copy an object to a local file.

        Raises:
            NotFound: The object does not exist.
        """
        ...

    def sha256(self, path: str) -> str | None:
        """Return the SHA-256 of an object's bytes, without a copy; None if it does not exist."""
        ...

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of every object whose path starts with `prefix`."""
        ...

    def delete(self, path: str) -> None:
        """Delete an object, if it exists."""
        ...


def open_objects(uri: str) -> Objects:
    """Open a folder (created if it does not exist) or `s3://bucket/prefix`.

    Raises:
        BadRecipe: The URI has another scheme.
    """
    if uri.startswith("s3://"):
        return S3Objects(uri)
    if "://" in uri and not uri.startswith("file://"):
        raise BadRecipe(
            uri, "an unknown URI scheme", "a folder or s3://bucket/prefix", "correct it"
        )
    return FolderObjects(Path(uri.removeprefix("file://")).expanduser().resolve())


class FolderObjects:
    """Objects as files in a folder.

    Writes are renames of files from `.staging`, so readers never see a partial object, and whoever
    lists the objects' folders sees nothing else. A write has reached the disk when it returns.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = str(folder)

    def read(self, path: str) -> tuple[bytes, str] | None:
        try:
            data = (self.folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data, hashlib.sha256(data).hexdigest()

    def write(self, path: str, data: bytes) -> None:
        with self._staged(path, data) as staged:
            rename(staged, self.folder / path)

    def create(self, path: str, data: bytes) -> bool:
        target = self.folder / path
        with self._staged(path, data) as staged:
            try:
                # A hard link fails if the name is taken. It is the only atomic "create if absent"
                # that never exposes a partial file.
                os.link(staged, target)
            except FileExistsError:
                return False
            flush(target.parent)
        return True

    def replace(self, path: str, data: bytes, seen: str | None) -> bool:
        with self._staged(path, data) as staged, locked(self._staging / "lock", keep=True):
            now = self.read(path)
            if (now[1] if now else None) != seen:
                return False
            rename(staged, self.folder / path)
        return True

    def upload(self, path: str, file: Path, keep: bool = False) -> None:
        target = self.folder / path
        with write_errors(target, file.stat().st_size):
            if not keep and _moved(file, target):
                return
        with self._staged(path, file) as staged:
            rename(staged, target)

    def download(self, path: str, file: Path) -> None:
        try:
            shutil.copyfile(self.folder / path, file)
        except FileNotFoundError:
            raise NotFound(
                f"{self.root}/{path}", "no such file", "an existing file", "correct the name"
            ) from None

    def sha256(self, path: str) -> str | None:
        try:
            return file_sha256(self.folder / path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, prefix: str) -> dict[str, int]:
        top = self.folder / prefix.rpartition("/")[0]
        found = {}
        for folder, folders, names in os.walk(top):
            if _STAGING in folders:
                folders.remove(_STAGING)
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), self.folder)
                if path.startswith(prefix):
                    with contextlib.suppress(FileNotFoundError):
                        found[path] = os.stat(os.path.join(folder, name)).st_size
        return found

    def delete(self, path: str) -> None:
        (self.folder / path).unlink(missing_ok=True)

    @functools.cached_property
    def _staging(self) -> Path:
        folder = self.folder / _STAGING
        make_folder(folder)
        sweep(folder, "write-*")
        return folder

    @contextlib.contextmanager
    def _staged(self, path: str, content: bytes | Path) -> Iterator[Path]:
        """A file with the given bytes, or a copy of a file, that is ready to be renamed."""
        target = self.folder / path
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        with write_errors(target, size):
            make_folder(target.parent)
            staged = self._staging / f"write-{uuid.uuid4().hex}"
            # The lock shows that the file is still being written.
            with locked(staged, keep=False):
                if isinstance(content, bytes):
                    staged.write_bytes(content)
                else:
                    shutil.copyfile(content, staged)
                flush(staged)
                yield staged


def _moved(file: Path, target: Path) -> bool:
    """Move a file; False if its disk is another one."""
    make_folder(target.parent)
    flush(file)
    try:
        rename(file, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


class S3Objects:
    """Objects under an S3 prefix. Credentials are found by boto3."""

    PART_BYTES = 16 * 1024 * 1024
    """Larger files are uploaded in parts of this size."""

    def __init__(self, uri: str) -> None:
        self.root = uri.rstrip("/")
        self.bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""

    @property
    def client(self):
        """The boto3 client."""
        return s3_client()

    def _errors(self, path: str) -> contextlib.AbstractContextManager[None]:
        return s3_errors(f"{self.root}/{path}")

    def read(self, path: str) -> tuple[bytes, str] | None:
        try:
            with self._errors(path):
                return self._whole(path, lambda body: body.read())
        except NotFound as error:
            if "bucket" in error.found:
                raise
            return None

    def write(self, path: str, data: bytes) -> None:
        with self._errors(path):
            self._put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        return self._put_if(path, data, IfNoneMatch="*")

    def replace(self, path: str, data: bytes, seen: str | None) -> bool:
        if seen is None:
            return self.create(path, data)
        return self._put_if(path, data, IfMatch=seen)

    def upload(self, path: str, file: Path, keep: bool = False) -> None:
        from boto3.s3.transfer import TransferConfig

        with self._errors(path):
            self.client.upload_file(
                str(file),
                self.bucket,
                self.prefix + path,
                ExtraArgs={"ChecksumAlgorithm": "SHA256"},
                Config=TransferConfig(
                    multipart_threshold=self.PART_BYTES, multipart_chunksize=self.PART_BYTES
                ),
            )

    def download(self, path: str, file: Path) -> None:
        with self._errors(path):
            self.client.download_file(self.bucket, self.prefix + path, str(file))

    def sha256(self, path: str) -> str | None:
        try:
            with self._errors(path):
                return self._whole(path, _sha256)[0]
        except NotFound as error:
            if "bucket" in error.found:
                raise
            return None

    def sizes(self, prefix: str) -> dict[str, int]:
        found = {}
        with self._errors(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    found[item["Key"].removeprefix(self.prefix)] = item["Size"]
        return found

    def delete(self, path: str) -> None:
        with self._errors(path):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + path)

    def _whole(self, path: str, read: Callable[[Any], Content]) -> tuple[Content, str]:
        """What an object's body is read as, and its tag. The client repeats a request that fails,
        but not one whose answer breaks off within the body."""
        from botocore.exceptions import (
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )

        for left in reversed(range(_READS)):
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path)
            try:
                return read(answer["Body"]), answer["ETag"]
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                if not left:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _put(self, path: str, data: bytes, **condition: str) -> None:
        self.client.put_object(
            Bucket=self.bucket,
            Key=self.prefix + path,
            Body=data,
            ChecksumAlgorithm="SHA256",
            **condition,
        )

    def _put_if(self, path: str, data: bytes, **condition: str) -> bool:
        from botocore.exceptions import ClientError

        with self._errors(path):
            try:
                self._put(path, data, **condition)
            except ClientError as error:
                # 409: a concurrent conditional write has won or will win.
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 409, 412):
                    if error.response["Error"]["Code"] == "NoSuchBucket":
                        raise
                    now = self.read(path)
                    # A retried request may find its own first write.
                    return now is not None and now[0] == data
                raise
        return True


def _sha256(body: Any) -> str:
    digest = hashlib.sha256()
    for block in body.iter_chunks(1 << 20):
        digest.update(block)
    return digest.hexdigest()
