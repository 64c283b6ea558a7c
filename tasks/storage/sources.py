"""Sources: resolves data and model URIs to their current files, and fetches these files.

A URI is a local file, folder or glob; `s3://bucket/prefix`; `hf://owner/name@revision/path`; or
`package:module/path`. Anything that can change (a branch, an object, a file) is resolved to its
current content before a cache key uses it, and a file that changed since is refused when fetched.
"""

from __future__ import annotations

import contextlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tasks.contracts.artifacts import Source, SourceFile
from tasks.contracts.base import digest_of
from tasks.contracts.errors import BadModel, BadRecipe, NoAccess, NotFound, StorageFailed
from tasks.storage.digest_cache import DigestCache
from tasks.storage.local_sources import list_local, list_package
from tasks.storage.remote_sources import (
    Kind,
    fetch_hub,
    fetch_s3,
    hub_license,
    list_hub,
    list_s3,
    pin_hub,
)

_PIN = re.compile(r"^(.*)#sha256=([0-9a-f]{64})$", re.S)

# Files that accompany data in repositories and folders, but are not data.
_NOT_DATA = re.compile(
    r"^(readme|license|licence|notice|changelog|citation|_success|_metadata|_common_metadata"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json|thumbs\.db|cache-.*\.arrow)"
    r"|\.(md|rst|py|pyc|pyi|ipynb|lock|tmp|part|crc|png|jpg|jpeg|svg|pdf|ya?ml|toml|cfg)$",
    re.I,
)
_MODEL_FILES = re.compile(r"\.(safetensors|json|txt|model|jinja|tiktoken)$")
_MODEL_WEIGHTS = re.compile(r"^(model|adapter_model)(-\d+-of-\d+)?\.safetensors$")
_GGUF_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.I)
_PICKLED = re.compile(r"\.(bin|pt|pth|ckpt|pkl|pickle)$")


def resolve(uri: str | tuple[str, ...], kind: Kind) -> Source:
    """Resolve a URI to its current files.

    Args:
        uri: The recipe's URI (or, for data, several), or the `pinned` URI of a resolved source.
        kind: `data` excludes files that accompany data (hidden files, README…); `model` includes
            only what loading needs, never pickled weights; `tasks` includes all files that are
            not hidden, but no Python files of a remote source.

    Raises:
        BadRecipe: The URI scheme is unknown.
        NotFound: The path, bucket, repository, revision or package does not exist, a glob matches
            nothing, or the files differ from the pinned ones.
        NoAccess: Credentials are missing, wrong, or lack read permission.
        BadModel: A model without safetensors weights, or with several GGUF files.
        HubFailed, StorageFailed: The server failed.
    """
    joined = uri if isinstance(uri, str) else ", ".join(uri)
    uris, pin = _parse_pin(uri)
    found: list[SourceFile] = []
    pinned = []
    for number, one in enumerate(uris):
        files = _list(one, kind)
        pinned.append(_pinned(one, kind, files))
        # Several roots may contain files of the same name.
        prefix = f"{number}/" if len(uris) > 1 else ""
        found += [file.model_copy(update={"path": prefix + file.path}) for file in files]
    found.sort(key=lambda file: file.path)
    digest = digest_of([[file.path, file.size, file.digest] for file in found])
    if pin not in (None, digest):
        raise NotFound(
            _where(kind, joined),
            f"files other than the pinned ones (digest {digest[:12]})",
            f"files with the digest {pin[:12]}",
            "restore the files, or remove '#sha256=' from the URI",
        )
    commits_only = all(each.startswith("hf://") for each in uris)
    return Source(
        uri=joined,
        pinned=", ".join(pinned) + ("" if commits_only else f"#sha256={digest}"),
        digest=digest,
        files=tuple(found),
    )


def _parse_pin(uri: str | tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """Return the URIs, and the expected digest if the source is pinned."""
    if not isinstance(uri, str):
        return tuple(uri), None
    match = _PIN.match(uri)
    if not match:
        return (uri,), None
    # `Source.pinned` joins several URIs with commas.
    return tuple(match[1].split(", ")), match[2]


def fetch_file(file: SourceFile, scratch: Path) -> Path:
    """Return a local copy of one file; a local file is used in place.

    Args:
        file: A file that `resolve` listed.
        scratch: A folder that the caller removes.

    Raises:
        StorageFailed: An S3 object has changed since it was resolved.
        NotFound, NoAccess, HubFailed: The file cannot be read.
    """
    if file.location.startswith("s3://"):
        return fetch_s3(file, scratch)
    if file.location.startswith("hf://"):
        return fetch_hub(file)
    return Path(file.location)


def fetch_folder(source: Source, scratch: Path) -> Path:
    """Return a local folder with all files of a source; a local folder is used in place.

    Raises:
        BadModel: The files are in several folders.
        StorageFailed, NotFound, NoAccess, HubFailed: As for `fetch_file`.
    """
    folder = scratch / "source"
    with ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(lambda file: fetch_file(file, folder), source.files))
    roots = {
        path.parents[file.path.count("/")] for file, path in zip(source.files, fetched, strict=True)
    }
    if len(roots) != 1:
        raise BadModel(
            f"model.uri {source.uri}", f"files in {len(roots)} folders", "one folder", "select one"
        )
    return roots.pop()


def stated_license(model: Source) -> str:
    """Return the license that a model's own card states; empty if it has no card that can be read.

    Args:
        model: A resolved model.
    """
    # A license is not worth a failed release.
    with contextlib.suppress(Exception):
        first = model.files[0]
        if first.location.startswith("hf://"):
            return hub_license(first)
        if not first.location.startswith("s3://"):
            from huggingface_hub import ModelCard

            folder = Path(first.location).parents[first.path.count("/")]
            return str(ModelCard.load(folder / "README.md").data.get("license") or "")
    return ""


def _list(uri: str, kind: Kind) -> list[SourceFile]:
    where = _where(kind, uri)
    if uri.startswith("s3://"):
        files = list_s3(uri, where)
    elif uri.startswith("hf://"):
        files = list_hub(uri, kind, where)
    elif uri.startswith("package:"):
        files = list_package(uri, where)
    elif "://" in uri and not uri.startswith("file://"):
        raise BadRecipe(
            where,
            f"an unknown URI scheme, {uri.partition('://')[0]}://",
            "a path, s3://bucket/prefix, hf://owner/name@revision or package:module/path",
            "correct it, or download the files and use their local folder",
        )
    else:
        files = list_local(uri.removeprefix("file://"), where)
    wanted = {
        "data": _only_data,
        "model": lambda files: _only_model(files, where),
        "tasks": lambda files: _only_tasks(files, uri.startswith(("s3://", "hf://"))),
    }[kind](files)
    if not wanted:
        raise NotFound(
            where,
            f"{len(files)} files, none of them {kind}" if files else "no files",
            "at least one file of a known format",
            "correct the path or the glob",
        )
    return _with_digests(wanted, where)


def _where(kind: Kind, uri: str) -> str:
    return f"{'evaluation.benchmark_folder' if kind == 'tasks' else f'{kind}.uri'} {uri}"


def _only_data(files: list[SourceFile]) -> list[SourceFile]:
    if len(files) == 1:
        # A file that is named explicitly is taken, whatever its name.
        return files
    return [file for file in files if _is_data(file.path)]


def _is_data(path: str) -> bool:
    return not _is_hidden(path) and not _NOT_DATA.search(path.rpartition("/")[2])


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.split("/"))


def _only_tasks(files: list[SourceFile], remote: bool) -> list[SourceFile]:
    # Task files can call functions of Python files next to them; remote ones are not trusted.
    return [
        file
        for file in files
        if not _is_hidden(file.path) and not (remote and file.path.endswith(".py"))
    ]


def _only_model(files: list[SourceFile], where: str) -> list[SourceFile]:
    # Subfolders hold weights for other frameworks or other uses.
    top = [file for file in files if "/" not in file.path and not file.path.startswith(".")]
    weights = [file for file in top if file.path.endswith(".safetensors")]
    ggufs = [file for file in top if file.path.lower().endswith(".gguf")]
    if ggufs and not weights:
        return _only_gguf(ggufs, where)
    pickled = sorted(file.path for file in top if _PICKLED.search(file.path))
    if not weights and pickled:
        raise BadModel(
            where,
            f"pickled weights only ({', '.join(pickled[:3])}), which are refused because loading "
            "them can run code",
            "weights as *.safetensors",
            "if you trust them, convert them once: "
            "AutoModel.from_pretrained(…).save_pretrained(folder, safe_serialization=True)",
        )
    if top and not weights:
        raise BadModel(
            where,
            f"no weights among {len(top)} files",
            "weights as *.safetensors",
            "use the folder or repository that contains model.safetensors and config.json",
        )
    # Variants (fp16, consolidated) would only be downloaded and ignored.
    ordinary = {file.path for file in weights if _MODEL_WEIGHTS.match(file.path)}
    extra = {file.path for file in weights} - ordinary if ordinary else set()
    return [file for file in top if _MODEL_FILES.search(file.path) and file.path not in extra]


def _only_gguf(files: list[SourceFile], where: str) -> list[SourceFile]:
    """Return the files of the one model among GGUF files (see `tasks.base_model.gguf_step`)."""
    # Image projectors (mmproj) are distributed with a model, but are not models.
    models = [file for file in files if "mmproj" not in file.path.lower()] or files
    if len({_GGUF_PART.sub("", file.path) for file in models}) > 1:
        raise BadModel(
            where,
            f"{len(models)} GGUF files ({', '.join(file.path for file in models[:3])}…)",
            "one model",
            f"name one of them, preferably the least quantized, such as …/{models[0].path}",
        )
    return models


def _pinned(uri: str, kind: Kind, files: list[SourceFile]) -> str:
    if not uri.startswith("hf://"):
        return uri
    return pin_hub(uri, kind, files[0])


def _with_digests(files: list[SourceFile], where: str) -> list[SourceFile]:
    """Return the files with digests; local files are read unless their digest is cached."""
    missing = [file for file in files if not file.digest]
    if not missing:
        return files
    with DigestCache() as cache, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            digests = list(pool.map(cache.digest, [Path(file.location) for file in missing]))
        except PermissionError as error:
            raise NoAccess(
                where,
                f"no permission to read {error.filename}",
                "files that this user can read",
                "change its permissions",
            ) from error
        except OSError as error:
            raise StorageFailed(
                where, str(error), "readable files", "check the disk and its mount"
            ) from error
    known = {file.location: digest for file, digest in zip(missing, digests, strict=True)}
    return [
        file.model_copy(update={"digest": file.digest or known[file.location]}) for file in files
    ]
