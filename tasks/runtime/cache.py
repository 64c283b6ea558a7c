"""The cache: a step's key, the digest of its code, and doing equal work once.

A step's key is the digest of all that can change its output: its name, its inputs (the recipe and
plan fields it reads, and the digests of what it is given), its code, and the versions of the
libraries that decide its output. The truth about a key is a small record in the store, written
after the artifact; Prefect's *Cached* state is its view of that record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Generic, TypeVar

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.states import Completed, Failed
from pydantic import ValidationError

from tasks.contracts.base import Contract, digest_of
from tasks.contracts.errors import BurnishError
from tasks.contracts.results import Provenance, StepResult
from tasks.runtime.code_digest import code_digest, library_versions
from tasks.runtime.context import RunContext
from tasks.storage.store import open_store

Inputs = TypeVar("Inputs", bound=Contract)
Result = TypeVar("Result", bound=StepResult)


class Step(Generic[Inputs, Result]):
    """A cached step: a pure function of its inputs, and the Prefect task that wraps it."""

    def __init__(
        self,
        name: str,
        work: Callable[[Inputs, RunContext], Result],
        result: type[Result],
        code: tuple[str, ...],
        libraries: tuple[str, ...],
    ) -> None:
        self.name, self.work, self.result = name, work, result
        self.code, self.libraries = code, libraries
        self.__doc__ = work.__doc__
        self.task = task(
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

    def cached(self, inputs: Inputs, context: RunContext) -> Result | None:
        """The result of equal work that was done before and is still whole; None without one."""
        if self.name in context.refresh or self.name in context.repair:
            return None
        store = open_store(context.store)
        record = store.read_json(self._record(inputs))
        if record is None:
            return None
        try:
            result = self.result.model_validate(record)
        except ValidationError:
            return None
        return result if store.holds(result.artifact) else None

    def once(self, inputs: Inputs, context: RunContext) -> Result:
        """The known result, or the work done and recorded."""
        return self.cached(inputs, context) or self._do(inputs, context)

    def __call__(self, inputs: Inputs, context: RunContext) -> Result:
        """Do the step as a Prefect task; *Cached* in the UI where the result is known."""
        return self.task(inputs, context, return_state=True).result()

    def _do(self, inputs: Inputs, context: RunContext) -> Result:
        started = time.monotonic()
        key = self.key(inputs)
        result = self.work(inputs, context)
        made = Provenance(
            run_id=context.run_id,
            run_name=context.run_name,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 3),
            libraries=library_versions(self.libraries),
            code=code_digest(self.code),
        )
        result = result.model_copy(update={"key": key, "provenance": made})
        # After the artifact: a record is a promise that the artifact is there.
        open_store(context.store).objects.write(
            self._record(inputs), result.model_dump_json(indent=1).encode()
        )
        return result

    def _record(self, inputs: Inputs) -> str:
        return f"keys/{self.name}/{self.key(inputs)}.json"

    def _prefect_key(self, _, parameters) -> str | None:
        # Derived from the record, so that Prefect's memory can never outlive or contradict it.
        inputs, context = parameters["inputs"], parameters["context"]
        known = self.cached(inputs, context)
        if known is None:
            return None
        return (
            f"{self.name}-{known.key}-{digest_of([context.store, known.model_dump(mode='json')])}"
        )

    def _run(self, inputs: Contract, context: RunContext):
        known = self.cached(inputs, context)
        if known is not None:
            return Completed(name="Cached", data=known, message=_reused(known))
        try:
            return self._do(inputs, context)
        except BurnishError as error:
            # Returned, not raised: a cause that is known needs no traceback on the run's page.
            return Failed(message=str(error), data=error)


def step(
    name: str, *, result: type[Result], code: tuple[str, ...], libraries: tuple[str, ...]
) -> Callable[[Callable[[Inputs, RunContext], Result]], Step[Inputs, Result]]:
    """Make a cached step of a pure function.

    Args:
        name: The step's name, in keys, records and the Prefect UI.
        result: The class of what it returns.
        code: Modules whose code decides the result, with all that they import of ours: the step's
            own module, and the programs and metric modules that it starts or loads by path.
        libraries: Distributions whose version decides the result.
    """

    def wrap(work: Callable[[Inputs, RunContext], Result]) -> Step[Inputs, Result]:
        return Step(name, work, result, code, libraries)

    return wrap


def _reused(result: StepResult) -> str:
    made = result.provenance
    return f"Made by run {made.run_name} at {made.at}" if made else "Made before"
