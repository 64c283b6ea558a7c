"""Sources: what a data or model URI means now, and how its files are fetched.

One grammar for both: a local file, folder or glob; `s3://bucket/prefix`;
`hf://owner/name@revision/path`; `package:module/path`. Every movable name is resolved to what it
means at this moment before anything is keyed on it, and what is fetched later is checked to be
that.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import importlib.util
import itertools
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from tasks.contracts.artifact import Source, SourceFile
from tasks.contracts.base import digest_of
from tasks.errors import BadModel, BadRecipe, NoAccess, NotFound, StorageFailed
from tasks.hub import hub_api, hub_errors
from tasks.store import file_sha256

Kind = Literal["data", "model"]

_MAGIC = re.compile(r"[*?\[]")

# Beside the data in repositories and folders, but not data themselves.
_NOT_DATA = re.compile(
    r"^(readme|license|licence|notice|changelog|citation|_success|_metadata|_common_metadata"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json|thumbs\.db|cache-.*\.arrow)"
    r"|\.(md|rst|py|pyc|pyi|ipynb|lock|tmp|part|crc|png|jpg|jpeg|svg|pdf|ya?ml|toml|cfg)$",
    re.I,
)
_MODEL_FILES = re.compile(r"\.(safetensors|json|txt|model|jinja|tiktoken)$")
_MODEL_WEIGHTS = re.compile(r"^(model|adapter_model)(-\d+-of-\d+)?\.safetensors$")
_PICKLED = re.compile(r"\.(bin|pt|pth|ckpt|pkl|pickle)$")

# A file that was changed so recently could be changed again without a newer time stamp.
_SETTLED_SECONDS = 2.0


def resolve(uri: str | tuple[str, ...], kind: Kind) -> Source:
    """What a URI means now.

    Args:
        uri: As the recipe says it; for data also several.
        kind: `data` leaves out what lies beside data (hidden files, README…); `model` takes only
            what loading needs, and never pickled weights.

    Raises:
        BadRecipe: The URI is of no known kind.
        NotFound: Nothing is there: no such path, bucket, repository, revision or package, or a
            glob without a match.
        NoAccess: Credentials are missing, wrong, or lack the right to read.
        BadModel: A model without safetensors weights.
        HubFailed, StorageFailed: The server did not answer as it should.
    """
    uris = (uri,) if isinstance(uri, str) else tuple(uri)
    found: list[SourceFile] = []
    for number, one in enumerate(uris):
        files = _list(one, kind)
        # Several roots may hold files of one name.
        prefix = f"{number}/" if len(uris) > 1 else ""
        found += [file.model_copy(update={"path": prefix + file.path}) for file in files]
    found.sort(key=lambda file: file.path)
    said = ", ".join(uris)
    digest = digest_of([[file.path, file.size, file.digest] for file in found])
    return Source(uri=said, pinned=_pinned(uris, found, digest), digest=digest, files=tuple(found))


def fetch_file(file: SourceFile, scratch: Path) -> Path:
    """A local copy of one file; a local file is used in place.

    Args:
        file: As `resolve` listed it.
        scratch: A folder that the caller removes.

    Raises:
        StorageFailed: An S3 object was changed since it was resolved.
        NotFound, NoAccess, HubFailed: It cannot be read.
    """
    if file.location.startswith("s3://"):
        return _fetch_s3(file, scratch)
    if file.location.startswith("hf://"):
        return _fetch_hub(file)
    return Path(file.location)


def fetch_folder(source: Source, scratch: Path) -> Path:
    """A local folder that holds a model's files; a local folder is used in place.

    Raises:
        StorageFailed, NotFound, NoAccess, HubFailed: As `fetch_file`.
    """
    folder = scratch / "source"
    with ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(lambda file: fetch_file(file, folder), source.files))
    roots = {
        path.parents[file.path.count("/")] for file, path in zip(source.files, fetched, strict=True)
    }
    if len(roots) != 1:
        raise BadModel(
            f"model.uri {source.uri}", f"files in {len(roots)} folders", "one folder", "name one"
        )
    return roots.pop()


def _list(uri: str, kind: Kind) -> list[SourceFile]:
    where = f"{kind}.uri {uri}"
    if uri.startswith("s3://"):
        files = _list_s3(uri, where)
    elif uri.startswith("hf://"):
        files = _list_hub(uri, kind, where)
    elif uri.startswith("package:"):
        files = _list_package(uri, where)
    elif "://" in uri and not uri.startswith("file://"):
        raise BadRecipe(
            where,
            f"an unknown kind of URI, {uri.partition('://')[0]}://",
            "a path, s3://bucket/prefix, hf://owner/name@revision or package:module/path",
            "correct it, or download the files and name their folder",
        )
    else:
        files = _list_local(uri.removeprefix("file://"), where)
    wanted = _only_model(files, where) if kind == "model" else _only_data(files)
    if not wanted:
        raise NotFound(
            where,
            f"{len(files)} files, none of them {kind}" if files else "no files",
            "at least one file of a known format",
            "correct the path, or the glob",
        )
    return _hashed(wanted, where)


def _only_data(files: list[SourceFile]) -> list[SourceFile]:
    if len(files) == 1:
        # Named by itself, whatever its name.
        return files
    return [file for file in files if _is_data(file.path)]


def _is_data(path: str) -> bool:
    *folders, name = path.split("/")
    if any(part.startswith(".") or part == "__pycache__" for part in (*folders, name)):
        return False
    return not _NOT_DATA.search(name)


def _only_model(files: list[SourceFile], where: str) -> list[SourceFile]:
    # Subfolders hold the same weights for other frameworks, or what belongs to other uses.
    top = [file for file in files if "/" not in file.path and not file.path.startswith(".")]
    weights = [file for file in top if file.path.endswith(".safetensors")]
    pickled = sorted(file.path for file in top if _PICKLED.search(file.path))
    if not weights and pickled:
        raise BadModel(
            where,
            f"pickled weights only ({', '.join(pickled[:3])}), which can run code when they are "
            "loaded and so are never loaded",
            "weights as *.safetensors",
            "convert them once where you trust them: "
            "AutoModel.from_pretrained(…).save_pretrained(folder, safe_serialization=True)",
        )
    if top and not weights:
        raise BadModel(
            where,
            f"no weights among {len(top)} files",
            "weights as *.safetensors",
            "name the folder or repository that holds model.safetensors and config.json",
        )
    # Variants (fp16, consolidated) would only be downloaded and ignored.
    ordinary = {file.path for file in weights if _MODEL_WEIGHTS.match(file.path)}
    extra = {file.path for file in weights} - ordinary if ordinary else set()
    return [file for file in top if _MODEL_FILES.search(file.path) and file.path not in extra]


def _pinned(uris: tuple[str, ...], files: list[SourceFile], digest: str) -> str:
    if len(uris) == 1 and uris[0].startswith("hf://"):
        repo = _parse_hub(uris[0], "data", "")
        kind, revision = _parse_location(files[0].location)[::2]
        prefix = "datasets/" if kind == "dataset" else ""
        path = f"/{repo.path}" if repo.path else ""
        return f"hf://{prefix}{repo.name}@{revision}{path}"
    return f"{', '.join(uris)}#sha256={digest}"


# Local files and packages


def _list_local(path: str, where: str) -> list[SourceFile]:
    place = Path(path).expanduser()
    if place.exists():
        place = place.resolve()
        if place.is_file():
            return [_local(place, place.parent)]
        return [_local(file, place) for file in _walk(place)]
    if not _MAGIC.search(path):
        raise NotFound(
            where, "nothing there", "a file, folder or glob", _nearest(place) or "correct the path"
        )
    matches = (Path(match) for match in glob.iglob(str(place), recursive=True))
    matched = sorted(match.resolve() for match in matches if match.is_file())
    if not matched:
        raise NotFound(
            where, "no file that matches", "a glob with a match", "correct it, and quote it in YAML"
        )
    root = _fixed_part(str(place)).resolve()
    return [_local(file, root) for file in matched]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if Path(parent, name).is_file())


def _fixed_part(pattern: str) -> Path:
    return Path(*itertools.takewhile(lambda part: not _MAGIC.search(part), Path(pattern).parts))


def _local(file: Path, root: Path) -> SourceFile:
    try:
        relative = file.relative_to(root).as_posix()
    except ValueError:
        relative = file.name  # a link that leads elsewhere
    return SourceFile(path=relative, size=file.stat().st_size, digest="", location=str(file))


def _nearest(place: Path) -> str:
    import difflib

    if not place.parent.is_dir():
        return f"{place.parent} does not exist either: correct the path"
    near = difflib.get_close_matches(place.name, os.listdir(place.parent), n=1)
    return f"did you mean {place.parent / near[0]}?" if near else ""


def _list_package(uri: str, where: str) -> list[SourceFile]:
    module, _, inner = uri.removeprefix("package:").partition("/")
    top, *rest = module.split(".")
    try:
        # Only of a top-level name: a dotted one would import its parent.
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise NotFound(
            where, f"no installed package {top!r}", "a package with data", f"pip install {top}"
        )
    return _list_local(os.path.join(places[0], *rest, inner), where)


def _hashed(files: list[SourceFile], where: str) -> list[SourceFile]:
    """The files, each with a digest: local ones are read, unless they were before."""
    todo = [file for file in files if not file.digest]
    if not todo:
        return files
    with _Memo() as memo, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            digests = list(pool.map(memo.digest, [Path(file.location) for file in todo]))
        except PermissionError as error:
            raise NoAccess(
                where,
                f"no permission to read {error.filename}",
                "files that this user may read",
                "change its permissions",
            ) from error
        except OSError as error:
            raise StorageFailed(
                where, str(error), "files that can be read", "check the disk and its mount"
            ) from error
    known = {file.location: digest for file, digest in zip(todo, digests, strict=True)}
    return [
        file.model_copy(update={"digest": file.digest or known[file.location]}) for file in files
    ]


class _Memo:
    """Remembers the SHA-256 of local files by path, size, time of change and inode."""

    def __init__(self) -> None:
        self._known: dict[tuple, str] = {}
        self._new: dict[tuple, str] = {}
        self._base: sqlite3.Connection | None = None

    def __enter__(self) -> _Memo:
        # A cache: where it cannot be kept, files are simply read again.
        with contextlib.suppress(OSError, sqlite3.Error):
            home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
            folder = Path(home).expanduser() / "burnish"
            folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(folder / "digests.sqlite", timeout=5)
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, size INTEGER, "
                "mtime_ns INTEGER, inode INTEGER, sha256 TEXT)"
            )
            rows = self._base.execute("SELECT path, size, mtime_ns, inode, sha256 FROM digests")
            self._known = {tuple(row[:4]): row[4] for row in rows}
        return self

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes. Raises OSError."""
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if key in self._known:
            return self._known[key]
        digest = file_sha256(path)
        if time.time() - stat.st_mtime > _SETTLED_SECONDS:
            self._new[key] = digest
        return digest

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._base is not None:
                rows = [(*key, digest) for key, digest in self._new.items()]
                self._base.executemany("REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", rows)
                self._base.commit()
                self._base.close()


# S3


def _list_s3(uri: str, where: str) -> list[SourceFile]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise BadRecipe(where, "no bucket", "s3://bucket/prefix", "name the bucket")
    magic = _MAGIC.search(key)
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
    # Keys that end in a slash are what some tools make in place of folders.
    chosen = [item for item in chosen if not item["Key"].endswith("/")]
    if not chosen:
        raise NotFound(
            where,
            "no object that matches" if magic else "no object of this name or prefix",
            "at least one object",
            "correct the prefix",
        )
    return [_s3_file(bucket, root, item) for item in chosen]


def _s3_objects(bucket: str, prefix: str, where: str) -> Iterator[dict]:
    with _s3_errors(where):
        pages = _s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
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


def _fetch_s3(file: SourceFile, scratch: Path) -> Path:
    from botocore.exceptions import ClientError

    place, _, tag = file.location.rpartition("#etag=")
    bucket, _, key = place.removeprefix("s3://").partition("/")
    target = scratch / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with _s3_errors(place):
        try:
            answer = _s3_client().get_object(Bucket=bucket, Key=key, IfMatch=f'"{tag}"')
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                raise
            raise StorageFailed(
                place,
                "an object that was changed after the run began",
                f"the object with ETag {tag}",
                "start the run again: it then takes the data as they are now",
            ) from None
        with open(target, "wb") as out:
            for chunk in answer["Body"].iter_chunks(1 << 20):
                out.write(chunk)
    return target


def _s3_client():
    # Importing boto3 takes a quarter of a second, which a local run need not spend.
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))


@contextlib.contextmanager
def _s3_errors(where: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        raise NoAccess(
            where,
            "no credentials",
            "credentials that boto3 finds",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
        ) from None
    except ClientError as error:
        raise _s3_problem(where, error) from error
    except BotoCoreError as error:
        raise StorageFailed(
            where, str(error), "an S3 server that answers", "check AWS_ENDPOINT_URL and network"
        ) from error


def _s3_problem(where: str, error) -> Exception:
    code = error.response["Error"]["Code"]
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return NotFound(where, "no such bucket", "a bucket that exists", "correct its name")
    if status == 404:
        return NotFound(where, "no such object", "an object that exists", "correct the name")
    if status in (401, 403):
        return NoAccess(
            where,
            f"access denied ({code})",
            "credentials with the right to list and read there",
            "check the AWS credentials and the bucket's policy",
        )
    return StorageFailed(
        where, f"{code} ({status})", "an S3 server that answers", "try again later"
    )


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
            "hf://owner/name, with @revision and /path where they are needed",
            "correct it",
        )
    named = {"datasets/": "dataset", "models/": "model"}.get(match["kind"] or "")
    return _Repo(
        kind=named or ("dataset" if kind == "data" else "model"),
        name=match["name"],
        revision=unquote(match["revision"] or "main"),
        path=(match["path"] or "").strip("/"),
    )


def _list_hub(uri: str, kind: Kind, where: str) -> list[SourceFile]:
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
    return _below(repo, info.sha, files, where)


def _below(repo: _Repo, commit: str, files: Iterable, where: str) -> list[SourceFile]:
    """Those of a repository's files that the URI's path or glob names."""
    if _MAGIC.search(repo.path):
        root = _fixed_part(repo.path).as_posix()
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
        known = f": it has {', '.join(names[:10])}"
    return NotFound(
        where,
        f"no revision {repo.revision!r} in {repo.name}{known}",
        "a branch, tag or commit that exists",
        "correct what stands after the @",
    )


def _no_repository(api, repo: _Repo, where: str, error: Exception) -> Exception:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        return NoAccess(
            where,
            "a gated repository",
            "a token whose owner was given access",
            f"ask for access at {api.endpoint}/{repo.name}, and set HF_TOKEN",
        )
    signed_in = bool(api.token)
    return NotFound(
        where,
        f"no {repo.kind} repository {repo.name!r}"
        + (" that this token may read" if signed_in else ", or a private one"),
        f"a {repo.kind} repository that exists",
        "correct the name" + ("" if signed_in else ", or set HF_TOKEN if it is private"),
    )


_LOCATION = re.compile(r"^hf://(?P<kind>datasets/)?(?P<name>[^/]+/[^/@]+)@(?P<commit>\w+)/(.*)$")


def _parse_location(location: str) -> tuple[str, str, str, str]:
    match = _LOCATION.match(location)
    assert match, location
    return "dataset" if match["kind"] else "model", match["name"], match["commit"], match[4]


def _fetch_hub(file: SourceFile) -> Path:
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
