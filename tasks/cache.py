"""The cache: a step's key, the digest of its code, and doing equal work once.

A step's key is the digest of all that can change its output: its name, its inputs (the recipe and
plan fields it reads, and the digests of what it is given), its code, and the versions of the
libraries that decide its output. The truth about a key is a small record in the store, written
after the artifact; Prefect's *Cached* state is its view of that record.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Generic, TypeVar

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.states import Completed, Failed
from pydantic import ValidationError

from tasks.contracts.artifact import Made, StepResult
from tasks.contracts.base import Contract, digest_of
from tasks.errors import BurnishError
from tasks.store import open_store

ROOT = Path(__file__).resolve().parent.parent

# What only carries work, and cannot change its result: an edited error message must not retrain
# everything. Each of these is edited by a test, as is each root of each step.
INFRASTRUCTURE = frozenset(
    {
        "tasks.cache",
        "tasks.contracts",
        "tasks.errors",
        "tasks.hub",
        "tasks.memo",
        "tasks.objects",
        "tasks.process",
        "tasks.programs.protocol",
        "tasks.data.remote",
        "tasks.report",
        "tasks.s3",
        "tasks.data.sources",
        "tasks.store",
    }
)

Inputs = TypeVar("Inputs", bound=Contract)
Result = TypeVar("Result", bound=StepResult)


class Room(Contract):
    """Where a step works and for whom: nothing in it may change a result.

    Attributes:
        store: The store's URI.
        run_id, run_name: The flow run, for provenance.
        refresh: Steps to do anew even if their result is known.
        repair: Steps whose record is not believed, because something they made was found damaged;
            what is intact of theirs is still used.
    """

    store: str
    run_id: str = ""
    run_name: str = ""
    refresh: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()


class Step(Generic[Inputs, Result]):
    """A cached step: a pure function of its inputs, and the Prefect task that wraps it."""

    def __init__(
        self,
        name: str,
        work: Callable[[Inputs, Room], Result],
        result: type[Result],
        code: tuple[str, ...],
        libraries: tuple[str, ...],
    ) -> None:
        self.name, self.work, self.result = name, work, result
        self.code, self.libraries = code, libraries
        self.__doc__ = work.__doc__
        self._task = task(
            name=name,
            description=work.__doc__,
            task_run_name=name,
            cache_policy=CacheKeyFnPolicy(cache_key_fn=self._prefect_key),
            persist_result=True,
            result_serializer="json",
        )(self._run)

    def key(self, inputs: Inputs) -> str:
        """The key of this work: 64 hexadecimal digits."""
        return digest_of(
            {
                "step": self.name,
                "inputs": inputs.key_part(),
                "code": code_digest(self.code),
                "libraries": library_versions(self.libraries),
            }
        )

    def known(self, inputs: Inputs, room: Room) -> Result | None:
        """The result of equal work that was done before and is still whole; None without one."""
        if self.name in room.refresh or self.name in room.repair:
            return None
        store = open_store(room.store)
        record = store.read_json(self._record(inputs))
        if record is None:
            return None
        try:
            result = self.result.model_validate(record)
        except ValidationError:
            return None
        return result if store.holds(result.artifact) else None

    def once(self, inputs: Inputs, room: Room) -> Result:
        """The known result, or the work done and recorded."""
        return self.known(inputs, room) or self._do(inputs, room)

    def __call__(self, inputs: Inputs, room: Room) -> Result:
        """Do the step as a Prefect task; *Cached* in the UI where the result is known."""
        return self._task(inputs, room, return_state=True).result()

    def _do(self, inputs: Inputs, room: Room) -> Result:
        started = time.monotonic()
        key = self.key(inputs)
        result = self.work(inputs, room)
        made = Made(
            run_id=room.run_id,
            run_name=room.run_name,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 3),
            libraries=library_versions(self.libraries),
            code=code_digest(self.code),
        )
        result = result.model_copy(update={"key": key, "made": made})
        # After the artifact: a record is a promise that the artifact is there.
        open_store(room.store).objects.write(
            self._record(inputs), result.model_dump_json(indent=1).encode()
        )
        return result

    def _record(self, inputs: Inputs) -> str:
        return f"keys/{self.name}/{self.key(inputs)}.json"

    def _prefect_key(self, context, parameters) -> str | None:
        # Derived from the record, so that Prefect's memory can never outlive or contradict it.
        inputs, room = parameters["inputs"], parameters["room"]
        known = self.known(inputs, room)
        if known is None:
            return None
        return f"{self.name}-{known.key}-{digest_of([room.store, known.model_dump(mode='json')])}"

    def _run(self, inputs: Contract, room: Room):
        known = self.known(inputs, room)
        if known is not None:
            return Completed(name="Cached", data=known, message=_reused(known))
        try:
            return self._do(inputs, room)
        except BurnishError as error:
            # Returned, not raised: a cause that is known needs no traceback on the run's page.
            return Failed(message=str(error), data=error)


def step(
    name: str, *, result: type[Result], code: tuple[str, ...], libraries: tuple[str, ...]
) -> Callable[[Callable[[Inputs, Room], Result]], Step[Inputs, Result]]:
    """Make a cached step of a pure function.

    Args:
        name: The step's name, in keys, records and the Prefect UI.
        result: The class of what it returns.
        code: Modules whose code decides the result, with all that they import of ours: the step's
            own module, and the programs and metric modules that it starts or loads by path.
        libraries: Distributions whose version decides the result.
    """

    def wrap(work: Callable[[Inputs, Room], Result]) -> Step[Inputs, Result]:
        return Step(name, work, result, code, libraries)

    return wrap


def _reused(result: StepResult) -> str:
    made = result.made
    return f"Made by run {made.run_name} at {made.at}" if made else "Made before"


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
            # `from tasks import load` imports a module, `from tasks.load import read` a name.
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
