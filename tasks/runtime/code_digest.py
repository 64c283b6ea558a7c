"""The digest of the code, and the versions of the libraries, that decide a step's result."""

from __future__ import annotations

import ast
import functools
import hashlib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Folders that only carry work and cannot change its result: an edited error message must not
# retrain anything.
INFRASTRUCTURE = frozenset({"tasks.contracts", "tasks.report", "tasks.runtime", "tasks.storage"})


@functools.cache
def library_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed version by distribution; `absent` for one that is not installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.cache
def code_digest(roots: tuple[str, ...]) -> str:
    """SHA-256 over the syntax trees, docstrings left out, of modules and of what they import of
    ours, less the infrastructure.

    Raises:
        FileNotFoundError: A root does not exist.
    """
    trees: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in trees or _is_infrastructure(name):
            continue
        tree = ast.parse(_module_file(name).read_bytes())
        waiting += [found for found in _own_imports(tree) if found not in trees]
        trees[name] = ast.dump(_without_docstrings(tree))
    return hashlib.sha256(repr(sorted(trees.items())).encode()).hexdigest()


def _is_infrastructure(name: str) -> bool:
    return any(name == item or name.startswith(f"{item}.") for item in INFRASTRUCTURE)


def _module_file(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _own_imports(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from tasks import load` imports a module, `from tasks.load.step import read` a name.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [node.module, *(name for name in inner if _module_file(name).is_file())]
    return [name for name in names if name.split(".")[0] == "tasks"]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return tree
