"""The digest of the code, and the versions of the libraries, that decide a step's result.

The digest is of syntax trees, not of text: comments, formatting and docstrings do not count, nor do
the sentences of errors. Rewording a message must not retrain anything.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from tasks.contracts import errors

ROOT = Path(__file__).resolve().parents[2]

INFRASTRUCTURE = ("tasks.contracts", "tasks.report", "tasks.runtime", "tasks.storage")
"""Folders that carry and describe results but do not decide them: no digest covers them."""
TASK_TABLES = "tasks.contracts.task_tables"
"""The exception: its tables decide which rows are read and which metrics are computed."""
_INFRASTRUCTURE_PREFIXES = tuple(f"{folder}." for folder in INFRASTRUCTURE)

ERROR_CLASSES = frozenset(
    name
    for name, item in vars(errors).items()
    if isinstance(item, type) and issubclass(item, errors.BurnishError)
)


class ModuleCode(NamedTuple):
    """One module: the modules of ours that it imports, and the SHA-256 of its syntax tree."""

    imports: frozenset[str]
    digest: str


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


def code_digest(roots: tuple[str, ...]) -> str:
    """SHA-256 over the code of modules and of what they import of ours.

    Raises:
        FileNotFoundError: A root does not exist.
    """
    covered = [(name, read_module(name).digest) for name in covered_modules(roots)]
    return hashlib.sha256(repr(covered).encode()).hexdigest()


def covered_modules(roots: tuple[str, ...]) -> list[str]:
    """The modules that a code digest covers, sorted: the roots and what they import of ours,
    directly or not, except the infrastructure.

    Raises:
        FileNotFoundError: A root does not exist.
    """
    covered: set[str] = set()
    waiting = set(roots)
    while waiting:
        name = waiting.pop()
        covered.add(name)
        waiting |= read_module(name).imports - covered
    return sorted(covered)


@functools.cache
def read_module(name: str) -> ModuleCode:
    """Parse a module, once per process: steps have most of their modules in common."""
    scan = _Scan(ast.parse(module_file(name).read_bytes()))
    digest = hashlib.sha256("\0".join(scan.tokens).encode()).hexdigest()
    return ModuleCode(frozenset(filter(_is_covered, scan.imports)), digest)


def module_file(name: str) -> Path:
    """Where a module's source is. Packages have none: their `__init__.py` holds no code."""
    return ROOT / f"{name.replace('.', '/')}.py"


class _Scan:
    """A syntax tree as a flat sequence of tokens that only an equal tree has, and its imports."""

    def __init__(self, tree: ast.AST) -> None:
        self.tokens: list[str] = []
        self.imports: list[str] = []
        self._add_node(tree, in_error=False)

    def _add_node(self, node: ast.AST, in_error: bool) -> None:
        self.tokens.append(type(node).__name__)
        in_error = in_error or _is_error(node)
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                self.tokens.append("[")
                for item in value:
                    self._add_value(item, in_error)
                self.tokens.append("]")
            else:
                self._add_value(value, in_error)
        if isinstance(node, ast.Import):
            self.imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from tasks.load import dedup` imports a module, `from tasks.load.step import load` a
            # name.
            self.imports.append(node.module)
            self.imports += [f"{node.module}.{alias.name}" for alias in node.names]

    def _add_value(self, value: object, in_error: bool) -> None:
        if not isinstance(value, ast.AST):
            self.tokens.append(repr(value))
        elif not (_is_docstring(value) or (in_error and _is_text(value))):
            self._add_node(value, in_error)


def _is_covered(name: str) -> bool:
    ours = name.startswith("tasks.") and not name.startswith(_INFRASTRUCTURE_PREFIXES)
    return name == TASK_TABLES or (ours and module_file(name).is_file())


def _is_error(node: ast.AST) -> bool:
    """Whether this makes an error: `BadData(…)`, raised, returned or passed on."""
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
    return name in ERROR_CLASSES


def _is_docstring(node: ast.AST) -> bool:
    """Whether this is a statement of a text alone: of a module, class, function or attribute."""
    return isinstance(node, ast.Expr) and _is_text(node.value)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
