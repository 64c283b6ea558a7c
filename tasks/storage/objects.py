"""Named byte objects in a folder or under an S3 prefix, used by the store, the deployment log and
the release targets.

Both backends have the same operations. Two are conditional (`create` and `replace`), so the loser
of a race is notified and overwrites nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tasks.contracts.errors import BadRecipe, NoAccess, NotFound, StorageFailed
from tasks.storage.s3 import s3_client, s3_errors


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

    def upload(self, path: str, file: Path) -> None:
        """Write a local file's bytes atomically. The file may be moved instead of copied."""
        ...

    def download(self, path: str, file: Path) -> None:
        """Copy an object to a local file.

        Raises:
            NotFound: The object does not exist.
        """
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
    """Objects as files in a folder. Writes are renames, so readers never see a partial object."""

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
        with self._staged(path) as staged:
            staged.write_bytes(data)
            os.replace(staged, self.folder / path)

    def create(self, path: str, data: bytes) -> bool:
        with self._staged(path) as staged:
            staged.write_bytes(data)
            try:
                # A hard link fails if the name is taken. It is the only atomic "create if absent"
                # that never exposes a partial file.
                os.link(staged, self.folder / path)
            except FileExistsError:
                return False
        return True

    def replace(self, path: str, data: bytes, seen: str | None) -> bool:
        with self._staged(path) as staged:
            staged.write_bytes(data)
            with open(self.folder / f"{path}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                now = self.read(path)
                if (now[1] if now else None) != seen:
                    return False
                os.replace(staged, self.folder / path)
        return True

    def upload(self, path: str, file: Path) -> None:
        with self._staged(path) as staged:
            try:
                os.replace(file, staged)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                shutil.copyfile(file, staged)
            os.replace(staged, self.folder / path)

    def download(self, path: str, file: Path) -> None:
        try:
            shutil.copyfile(self.folder / path, file)
        except FileNotFoundError:
            raise NotFound(
                f"{self.root}/{path}", "no such file", "an existing file", "correct the name"
            ) from None

    def sizes(self, prefix: str) -> dict[str, int]:
        top = self.folder / prefix.rpartition("/")[0]
        found = {}
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), self.folder)
                if path.startswith(prefix) and not name.endswith((".lock", ".staged")):
                    with contextlib.suppress(FileNotFoundError):
                        found[path] = os.stat(os.path.join(folder, name)).st_size
        return found

    def delete(self, path: str) -> None:
        (self.folder / path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _staged(self, path: str) -> Iterator[Path]:
        target = self.folder / path
        staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}.staged")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield staged
        except PermissionError as error:
            raise NoAccess(
                str(error.filename or target),
                "no permission to write",
                "a folder that this user can write to",
                "change its permissions, or use another folder",
            ) from error
        except OSError as error:
            raise StorageFailed(
                str(error.filename or target),
                "no disk space" if error.errno == errno.ENOSPC else str(error.strerror),
                "a writable folder",
                "free some space"
                if error.errno == errno.ENOSPC
                else "check the disk and its mount",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)


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
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path)
                return answer["Body"].read(), answer["ETag"]
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

    def upload(self, path: str, file: Path) -> None:
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
