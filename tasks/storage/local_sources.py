"""Lists the files of local sources: files, folders, globs, and data in installed packages."""

from __future__ import annotations

import difflib
import glob
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from tasks.contracts.artifacts import SourceFile
from tasks.contracts.errors import NotFound
from tasks.storage.remote_sources import MAGIC, fixed_part


def list_local(path: str, where: str) -> list[SourceFile]:
    """List the files of a local path or glob; their digests are left empty.

    Args:
        path: A file, a folder or a glob.
        where: The recipe field and URI, for messages.

    Raises:
        NotFound: Nothing is there.
    """
    place = Path(path).expanduser()
    if place.exists():
        place = place.resolve()
        if place.is_file():
            return [_local(place, place.parent)]
        return [_local(file, place) for file in _walk(place)]
    if not MAGIC.search(path):
        raise NotFound(
            where, "no such path", "a file, folder or glob", _nearest(place) or "correct the path"
        )
    matches = (Path(match) for match in glob.iglob(str(place), recursive=True))
    matched = sorted(match.resolve() for match in matches if match.is_file())
    if not matched:
        raise NotFound(
            where,
            "no matching file",
            "a glob that matches files",
            "correct it, and quote it in YAML",
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
        relative = file.name  # a link to another place
    return SourceFile(path=relative, size=file.stat().st_size, digest="", location=str(file))


def _nearest(place: Path) -> str:
    if not place.parent.is_dir():
        return f"{place.parent} does not exist either: correct the path"
    near = difflib.get_close_matches(place.name, os.listdir(place.parent), n=1)
    return f"did you mean {place.parent / near[0]}?" if near else ""


def list_package(uri: str, where: str) -> list[SourceFile]:
    """List data files of an installed package, without importing it.

    Args:
        uri: `package:module/path`.
        where: The recipe field and URI, for messages.

    Raises:
        NotFound: The package is not installed, or nothing is there.
    """
    module, _, inner = uri.removeprefix("package:").partition("/")
    top, *rest = module.split(".")
    try:
        # Only the top-level name: find_spec imports the parents of a dotted one.
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise NotFound(
            where, f"no installed package {top!r}", "a package with data", f"pip install {top}"
        )
    return list_local(os.path.join(places[0], *rest, inner), where)
