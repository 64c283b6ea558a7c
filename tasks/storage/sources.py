"""Sources: what a data or model URI means now, and how its files are fetched.

One grammar for both: a local file, folder or glob; `s3://bucket/prefix`;
`hf://owner/name@revision/path`; `package:module/path`. Every movable name is resolved to what it
means at this moment before anything is keyed on it, and what is fetched later is checked to be
that.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tasks.contracts.artifacts import Source, SourceFile
from tasks.contracts.base import digest_of
from tasks.contracts.errors import BadModel, BadRecipe, NoAccess, NotFound, StorageFailed
from tasks.storage.remote_sources import (
    MAGIC,
    Kind,
    fetch_hub,
    fetch_s3,
    fixed_part,
    list_hub,
    list_s3,
    pin_hub,
)
from tasks.storage.store import file_sha256

_PIN = re.compile(r"^(.*)#sha256=([0-9a-f]{64})$", re.S)

# Beside the data in repositories and folders, but not data themselves.
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

# A file that was changed so recently could be changed again without a newer time stamp.
_SETTLED_SECONDS = 2.0


def resolve(uri: str | tuple[str, ...], kind: Kind) -> Source:
    """What a URI means now.

    Args:
        uri: As the recipe says it, for data also several; or the `pinned` of an earlier answer.
        kind: `data` leaves out what lies beside data (hidden files, README…); `model` takes only
            what loading needs, and never pickled weights; `tasks` takes all that is not hidden, of
            another machine no Python.

    Raises:
        BadRecipe: The URI is of no known kind.
        NotFound: Nothing is there: no such path, bucket, repository, revision or package, or a
            glob without a match; or not what was pinned.
        NoAccess: Credentials are missing, wrong, or lack the right to read.
        BadModel: A model without safetensors weights, or several GGUF files.
        HubFailed, StorageFailed: The server did not answer as it should.
    """
    said = uri if isinstance(uri, str) else ", ".join(uri)
    uris, pin = _parse_pin(uri)
    found: list[SourceFile] = []
    pinned = []
    for number, one in enumerate(uris):
        files = _list(one, kind)
        pinned.append(_pinned(one, kind, files))
        # Several roots may hold files of one name.
        prefix = f"{number}/" if len(uris) > 1 else ""
        found += [file.model_copy(update={"path": prefix + file.path}) for file in files]
    found.sort(key=lambda file: file.path)
    digest = digest_of([[file.path, file.size, file.digest] for file in found])
    if pin not in (None, digest):
        raise NotFound(
            _where(kind, said),
            f"other files than were pinned (digest {digest[:12]})",
            f"files with the digest {pin[:12]}",
            "bring back the files as they were, or name the source without '#sha256='",
        )
    commits_only = all(each.startswith("hf://") for each in uris)
    return Source(
        uri=said,
        pinned=", ".join(pinned) + ("" if commits_only else f"#sha256={digest}"),
        digest=digest,
        files=tuple(found),
    )


def _parse_pin(uri: str | tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """The URIs, and the digest that a pinned source must have."""
    if not isinstance(uri, str):
        return tuple(uri), None
    match = _PIN.match(uri)
    if not match:
        return (uri,), None
    # `Source.pinned` lists several after one another.
    return tuple(match[1].split(", ")), match[2]


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
        return fetch_s3(file, scratch)
    if file.location.startswith("hf://"):
        return fetch_hub(file)
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
    where = _where(kind, uri)
    if uri.startswith("s3://"):
        files = list_s3(uri, where)
    elif uri.startswith("hf://"):
        files = list_hub(uri, kind, where)
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
            "correct the path, or the glob",
        )
    return _hashed(wanted, where)


def _where(kind: Kind, uri: str) -> str:
    return f"{'evaluation.benchmark_folder' if kind == 'tasks' else f'{kind}.uri'} {uri}"


def _only_data(files: list[SourceFile]) -> list[SourceFile]:
    if len(files) == 1:
        # Named by itself, whatever its name.
        return files
    return [file for file in files if _is_data(file.path)]


def _is_data(path: str) -> bool:
    return not _is_hidden(path) and not _NOT_DATA.search(path.rpartition("/")[2])


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.split("/"))


def _only_tasks(files: list[SourceFile], remote: bool) -> list[SourceFile]:
    # Task files may call functions of Python files beside them, which no one here has read.
    return [
        file
        for file in files
        if not _is_hidden(file.path) and not (remote and file.path.endswith(".py"))
    ]


def _only_model(files: list[SourceFile], where: str) -> list[SourceFile]:
    # Subfolders hold the same weights for other frameworks, or what belongs to other uses.
    top = [file for file in files if "/" not in file.path and not file.path.startswith(".")]
    weights = [file for file in top if file.path.endswith(".safetensors")]
    ggufs = [file for file in top if file.path.lower().endswith(".gguf")]
    if ggufs and not weights:
        return _only_gguf(ggufs, where)
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


def _only_gguf(files: list[SourceFile], where: str) -> list[SourceFile]:
    """The one model among GGUF files, with all its parts; see `tasks.base_model.gguf_step`."""
    # What projects images into a model's space lies beside it, and is none itself.
    models = [file for file in files if "mmproj" not in file.path.lower()] or files
    if len({_GGUF_PART.sub("", file.path) for file in models}) > 1:
        raise BadModel(
            where,
            f"{len(models)} GGUF files ({', '.join(file.path for file in models[:3])}…)",
            "one model",
            f"name one of them, the least quantised: …/{models[0].path}",
        )
    return models


def _pinned(uri: str, kind: Kind, files: list[SourceFile]) -> str:
    if not uri.startswith("hf://"):
        return uri
    return pin_hub(uri, kind, files[0])


# Local files and packages


def _list_local(path: str, where: str) -> list[SourceFile]:
    place = Path(path).expanduser()
    if place.exists():
        place = place.resolve()
        if place.is_file():
            return [_local(place, place.parent)]
        return [_local(file, place) for file in _walk(place)]
    if not MAGIC.search(path):
        raise NotFound(
            where, "nothing there", "a file, folder or glob", _nearest(place) or "correct the path"
        )
    matches = (Path(match) for match in glob.iglob(str(place), recursive=True))
    matched = sorted(match.resolve() for match in matches if match.is_file())
    if not matched:
        raise NotFound(
            where, "no file that matches", "a glob with a match", "correct it, and quote it in YAML"
        )
    root = fixed_part(str(place)).resolve()
    return [_local(file, root) for file in matched]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if Path(parent, name).is_file())


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
    with _Memo() as substeps, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            digests = list(pool.map(substeps.digest, [Path(file.location) for file in todo]))
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
