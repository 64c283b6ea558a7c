"""Lists and fetches the files of sources on S3 and on the Hugging Face Hub.

A listing pins each file: an object to its ETag, a file of a repository to its commit. Fetching
returns the pinned content or fails.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from tasks.contracts.artifacts import SourceFile
from tasks.contracts.errors import BadRecipe, NoAccess, NotFound, StorageFailed
from tasks.storage.hub import hub_api, hub_errors
from tasks.storage.s3 import s3_client, s3_errors

Kind = Literal["data", "model", "tasks"]

MAGIC = re.compile(r"[*?\[]")
"""Matches the special characters of a glob."""


def fixed_part(pattern: str) -> Path:
    """Return the folders of a glob before its first special character."""
    return Path(*itertools.takewhile(lambda part: not MAGIC.search(part), Path(pattern).parts))


# S3


def list_s3(uri: str, where: str) -> list[SourceFile]:
    """List the objects of an S3 URI: one object, those under a prefix, or those matching a glob.

    Args:
        uri: `s3://bucket/prefix`.
        where: The recipe field and URI, for messages.

    Raises:
        BadRecipe, NotFound, NoAccess, StorageFailed: Nothing can be read at this URI.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise BadRecipe(where, "no bucket", "s3://bucket/prefix", "name the bucket")
    magic = MAGIC.search(key)
    start = key[: magic.start()] if magic else key.rstrip("/")
    objects = list(_s3_objects(bucket, start, where))
    if magic:
        root = start.rpartition("/")[0]
        chosen = [item for item in objects if fnmatch.fnmatchcase(item["Key"], key)]
    else:
        single = [item for item in objects if item["Key"] == key]
        root = key.rpartition("/")[0] if single else start
        chosen = single or [
            item for item in objects if not start or item["Key"].startswith(f"{start}/")
        ]
    # Some tools create keys that end in a slash as folders.
    chosen = [item for item in chosen if not item["Key"].endswith("/")]
    if not chosen:
        raise NotFound(
            where,
            "no matching object" if magic else "no object with this name or prefix",
            "at least one object",
            "correct the prefix",
        )
    return [_s3_file(bucket, root, item) for item in chosen]


def _s3_objects(bucket: str, prefix: str, where: str) -> Iterator[dict]:
    with s3_errors(where):
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            yield from page.get("Contents", ())


def _s3_file(bucket: str, root: str, item: dict) -> SourceFile:
    tag = item["ETag"].strip('"')
    return SourceFile(
        path=item["Key"].removeprefix(f"{root}/" if root else ""),
        size=item["Size"],
        digest=f"etag:{tag}",
        location=f"s3://{bucket}/{item['Key']}#etag={tag}",
    )


def fetch_s3(file: SourceFile, scratch: Path) -> Path:
    """Download an object to its path in a folder.

    Raises:
        StorageFailed: The object has changed since it was listed, or the server failed.
        NotFound, NoAccess: The object cannot be read.
    """
    from botocore.exceptions import ClientError

    place, _, tag = file.location.rpartition("#etag=")
    bucket, _, key = place.removeprefix("s3://").partition("/")
    target = scratch / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with s3_errors(place):
        try:
            answer = s3_client().get_object(Bucket=bucket, Key=key, IfMatch=f'"{tag}"')
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                raise
            raise StorageFailed(
                place,
                "an object that changed after the run began",
                f"the object with ETag {tag}",
                "start the run again, to use the current data",
            ) from None
        with open(target, "wb") as out:
            for chunk in answer["Body"].iter_chunks(1 << 20):
                out.write(chunk)
    return target


# The Hugging Face Hub


@dataclass(frozen=True)
class _Repo:
    kind: Literal["dataset", "model"]
    name: str
    revision: str
    path: str


_HUB = re.compile(
    r"^hf://(?P<kind>datasets/|models/)?(?P<name>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(/(?P<path>.*))?$"
)


def _parse_hub(uri: str, kind: Kind, where: str) -> _Repo:
    match = _HUB.match(uri)
    if not match:
        raise BadRecipe(
            where,
            "an incomplete Hub URI",
            "hf://owner/name, with @revision and /path if needed",
            "correct it",
        )
    named = {"datasets/": "dataset", "models/": "model"}.get(match["kind"] or "")
    return _Repo(
        kind=named or ("model" if kind == "model" else "dataset"),
        name=match["name"],
        revision=unquote(match["revision"] or "main"),
        path=(match["path"] or "").strip("/"),
    )


def hub_model(uri: str) -> tuple[str, str] | None:
    """Return the repository id and the path inside it of a model's Hub URI; None for other URIs."""
    if not uri.startswith("hf://"):
        return None
    repo = _parse_hub(uri, "model", "model.uri")
    return repo.name, repo.path


def list_hub(uri: str, kind: Kind, where: str) -> list[SourceFile]:
    """List the files of a Hub URI at the current commit of its revision.

    Args:
        uri: `hf://owner/name@revision/path`.
        kind: The kind of repository, unless the URI says it.
        where: The recipe field and URI, for messages.

    Raises:
        BadRecipe, NotFound, NoAccess, HubFailed: Nothing can be read at this URI.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    repo = _parse_hub(uri, kind, where)
    api = hub_api()
    with hub_errors(where, passing=(RevisionNotFoundError,)):
        try:
            info = api.repo_info(repo.name, repo_type=repo.kind, revision=repo.revision)
        except RevisionNotFoundError:
            raise _no_revision(api, repo, where) from None
        except RepositoryNotFoundError as error:
            raise _no_repository(api, repo, where, error) from error
        tree = list(
            api.list_repo_tree(repo.name, recursive=True, revision=info.sha, repo_type=repo.kind)
        )
    files = [item for item in tree if isinstance(item, RepoFile)]
    return _select_files(repo, info.sha, files, where)


def _select_files(repo: _Repo, commit: str, files: Iterable, where: str) -> list[SourceFile]:
    """Select a repository's files by the URI's path or glob."""
    if MAGIC.search(repo.path):
        root = fixed_part(repo.path).as_posix()
        chosen = [file for file in files if fnmatch.fnmatchcase(file.path, repo.path)]
    else:
        files = list(files)
        single = [file for file in files if file.path == repo.path]
        root = repo.path.rpartition("/")[0] if single else repo.path
        chosen = single or [file for file in files if not root or file.path.startswith(f"{root}/")]
    if not chosen:
        raise NotFound(
            where,
            f"no file {repo.path!r} at revision {repo.revision} ({commit[:12]})"
            if repo.path
            else "an empty repository",
            "at least one file",
            "correct the path or the revision",
        )
    prefix = "datasets/" if repo.kind == "dataset" else ""
    root = "" if root == "." else root
    return [
        SourceFile(
            path=file.path.removeprefix(f"{root}/" if root else ""),
            size=file.size,
            digest=file.lfs.sha256 if file.lfs else f"git:{file.blob_id}",
            location=f"hf://{prefix}{repo.name}@{commit}/{file.path}",
        )
        for file in chosen
    ]


def _no_revision(api, repo: _Repo, where: str) -> NotFound:
    known = ""
    with contextlib.suppress(Exception):
        refs = api.list_repo_refs(repo.name, repo_type=repo.kind)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        known = f"; it has {', '.join(names[:10])}"
    return NotFound(
        where,
        f"no revision {repo.revision!r} in {repo.name}{known}",
        "an existing branch, tag or commit",
        "correct the revision after the @",
    )


def _no_repository(api, repo: _Repo, where: str, error: Exception) -> Exception:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        return NoAccess(
            where,
            "a gated repository",
            "a token whose owner has access",
            f"request access at {api.endpoint}/{repo.name}, and set HF_TOKEN",
        )
    signed_in = bool(api.token)
    return NotFound(
        where,
        f"no {repo.kind} repository {repo.name!r}"
        + (" that this token can read" if signed_in else ", or a private one"),
        f"an existing {repo.kind} repository",
        "correct the name" + ("" if signed_in else ", or set HF_TOKEN if it is private"),
    )


_LOCATION = re.compile(r"^hf://(?P<kind>datasets/)?(?P<name>[^/]+/[^/@]+)@(?P<commit>\w+)/(.*)$")


def _parse_location(location: str) -> tuple[str, str, str, str]:
    match = _LOCATION.match(location)
    assert match, location
    return "dataset" if match["kind"] else "model", match["name"], match["commit"], match[4]


def fetch_hub(file: SourceFile) -> Path:
    """Return a file in the Hub client's cache, after downloading it if necessary.

    Raises:
        NotFound, NoAccess, HubFailed: The file cannot be read.
    """
    from huggingface_hub import hf_hub_download

    kind, name, commit, path = _parse_location(file.location)
    api = hub_api()
    with hub_errors(file.location):
        return Path(
            hf_hub_download(
                name,
                path,
                repo_type=kind,
                revision=commit,
                endpoint=api.endpoint,
                token=api.token,
            )
        )


def hub_license(file: SourceFile) -> str:
    """Return the license that a repository's card states; empty if it states none.

    Args:
        file: A file of the repository, from `list_hub`.

    Raises:
        NotFound, NoAccess, HubFailed: The repository cannot be read.
    """
    _, name, commit, _ = _parse_location(file.location)
    with hub_errors(file.location):
        card = hub_api().model_info(name, revision=commit).card_data
    return str((card and card.get("license")) or "")


def pin_hub(uri: str, kind: Kind, file: SourceFile) -> str:
    """Return a Hub URI with its revision replaced by the commit of a listed file."""
    repo = _parse_hub(uri, kind, uri)
    commit = _parse_location(file.location)[2]
    prefix = "datasets/" if repo.kind == "dataset" else ""
    path = f"/{repo.path}" if repo.path else ""
    return f"hf://{prefix}{repo.name}@{commit}{path}"
