"""The step cache: each step is a pure function of its inputs, and equal work is done once.

A step's key is the digest of everything that can change its output: its name, its inputs (the
recipe and plan fields that it reads, and the digests of its input artifacts), its code, and the
versions of the libraries that decide its output. A small record in the store, written after the
artifact, says that a key's work was done. Prefect's *Cached* state only displays that record.

A run with a pool has the pool's workers do the steps that are meant for it, and reads their records
(tasks/runtime/pool.py). The keys of those steps hold the workers' library versions.

Two workers that do equal work end with one result: a record is only created, or replaces the very
record that its writer saw, and whoever is later takes what is there. An exclusive step is done by
one worker at a time (tasks/runtime/lease.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Generic, TypeVar, get_type_hints

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.states import Completed, Failed
from pydantic import ValidationError

from tasks.contracts.base import Contract, digest_of
from tasks.contracts.errors import BurnishError, CodeFailed, PoolFailed, describe
from tasks.contracts.pool import Request
from tasks.contracts.results import Provenance, StepResult
from tasks.runtime.code_digest import code_digest, library_versions
from tasks.runtime.context import RunContext
from tasks.runtime.lease import Lease, LeaseLost, lease
from tasks.runtime.logs import run_logger
from tasks.runtime.pool import compute_on_pool, step_request
from tasks.runtime.retry import with_retries
from tasks.runtime.termination import check_sigterm
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
        exclusive: bool = False,
        on_pool: bool = False,
        tidy: Callable[[str, RunContext], None] | None = None,
    ) -> None:
        self.name, self.work, self.result = name, work, result
        self.code, self.libraries = code, libraries
        self._exclusive, self._on_pool, self._tidy = exclusive, on_pool, tidy
        self.__doc__ = work.__doc__
        self.task = task(
            name=name,
            description=work.__doc__,
            task_run_name=name,
            cache_policy=CacheKeyFnPolicy(cache_key_fn=self._prefect_key),
            persist_result=True,
            result_serializer="json",
        )(self._run)

    @property
    def code_digest(self) -> str:
        """SHA-256 of the code that decides the result."""
        return code_digest(self.code)

    @property
    def inputs(self) -> type[Inputs]:
        """The class of the inputs."""
        return get_type_hints(self.work)["inputs"]

    def key(self, inputs: Inputs, context: RunContext | None = None) -> str:
        """The key of this work: 64 hexadecimal digits.

        Args:
            inputs: Of the work.
            context: The run: its pool's library versions count for what is done there. None: this
                machine's.
        """
        libraries = library_versions(self.libraries)
        if self._goes_to_pool(context) and context.machine:
            there = context.machine.libraries
            libraries = {name: there.get(name, "absent") for name in self.libraries}
        return digest_of(
            {
                "step": self.name,
                "inputs": inputs.key_part(),
                "code": self.code_digest,
                "libraries": libraries,
            }
        )

    def cached(self, inputs: Inputs, context: RunContext) -> Result | None:
        """The result of equal work done before, if its artifact is still complete; else None.

        On a pool, what is to be refreshed or repaired is left to its worker.
        """
        repeated = self.name in context.refresh or self.name in context.repair
        if repeated and not self._goes_to_pool(context):
            return None
        found = open_store(context.store).objects.read(self._record(inputs, context))
        return self._valid(found[0] if found else None, context)

    def once(self, inputs: Inputs, context: RunContext) -> Result:
        """The cached result, or else the result of doing the work, which is then cached."""
        return self.cached(inputs, context) or self._do(inputs, context)

    def __call__(self, inputs: Inputs, context: RunContext) -> Result:
        """Run the step as a Prefect task, shown as *Cached* in the UI if its result was cached."""
        check_sigterm()
        return self.task(inputs, context, return_state=True).result()

    def _goes_to_pool(self, context: RunContext | None) -> bool:
        return self._on_pool and context is not None and bool(context.pool)

    def _do(self, inputs: Inputs, context: RunContext) -> Result:
        if self._goes_to_pool(context):
            return self._do_on_pool(inputs, context)
        if not self._exclusive:
            return self._work_once(inputs, context)
        path = f"leases/{self.name}/{self.key(inputs)}.json"
        while True:
            try:
                with lease(open_store(context.store).objects, path, context) as held:
                    # Whom this worker waited for has done it.
                    return self.cached(inputs, context) or self._work_once(inputs, context, held)
            except LeaseLost:
                run_logger().warning(
                    "Another worker took over this step, since this one was not heard of for "
                    "too long: waiting for its result."
                )

    def _do_on_pool(self, inputs: Inputs, context: RunContext) -> Result:
        request = Request(
            name=self.name,
            steps=(step_request(self, inputs, context),),
            machine=context.machine,
            code={self.name: self.code_digest},
        )
        compute_on_pool(
            request,
            self.key(inputs, context),
            lambda: self.cached(inputs, context) is not None,
            context,
        )
        result = self.cached(inputs, context)
        if result is None:
            raise PoolFailed(
                f"pool {context.pool}",
                f"no record of {self.name} after its run",
                "a record in the store that both sides use",
                "start the run again; if it happens again, compare the store of the worker's run",
            )
        return result

    def _work_once(self, inputs: Inputs, context: RunContext, held: Lease | None = None) -> Result:
        """Do the work, and record its result unless another worker was faster."""
        started = time.monotonic()
        key, objects = self.key(inputs), open_store(context.store).objects
        path = self._record(inputs, context)
        seen = objects.read(path)
        result = self.work(inputs, context)
        provenance = Provenance(
            run_id=context.run_id,
            run_name=context.run_name,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 3),
            libraries=library_versions(self.libraries),
            code=self.code_digest,
        )
        result = result.model_copy(update={"key": key, "provenance": provenance})
        if held:
            held.confirm()
        # Written after the artifact: a record promises that the artifact exists.
        record = result.model_dump_json(indent=1).encode()
        while not objects.replace(path, record, seen[1] if seen else None):
            # On a GPU the two may differ in their last bits; what is released must be one of them.
            seen = objects.read(path)
            if other := self._valid(seen[0] if seen else None, context):
                result = other
                break
        self._tidy_up(key, context)
        return result

    def _valid(self, record: bytes | None, context: RunContext) -> Result | None:
        """The result of a record; None if it holds none, or its artifact is not complete."""
        try:
            result = self.result.model_validate_json(record or b"")
        except ValidationError:
            return None
        return result if open_store(context.store).holds(result.artifact) else None

    def _tidy_up(self, key: str, context: RunContext) -> None:
        if self._tidy:
            # The result is there: that something is left behind must not fail the run.
            with contextlib.suppress(BurnishError):
                self._tidy(key, context)

    def _record(self, inputs: Inputs, context: RunContext) -> str:
        return f"keys/{self.name}/{self.key(inputs, context)}.json"

    def _prefect_key(self, _, parameters) -> str | None:
        # Derived from the record, so that Prefect's own cache neither outlives nor contradicts it.
        inputs, context = parameters["inputs"], parameters["context"]
        cached = self.cached(inputs, context)
        if cached is None:
            return None
        record = digest_of([context.store, cached.model_dump(mode="json")])
        return f"{self.name}-{cached.key}-{record}"

    def _run(self, inputs: Contract, context: RunContext):
        cached = self.cached(inputs, context)
        if cached is not None:
            self._tidy_up(cached.key, context)
            return Completed(name="Cached", data=cached, message=_origin(cached))
        try:
            return with_retries(self.name, lambda: self._do(inputs, context))
        except Exception as error:
            known = describe(error)
            if type(known) is CodeFailed and known is not error:
                raise
            # Returned, not raised: the run's page needs no traceback of a known cause.
            return Failed(message=str(known), data=known)


def step(
    name: str,
    *,
    result: type[Result],
    code: tuple[str, ...],
    libraries: tuple[str, ...],
    exclusive: bool = False,
    on_pool: bool = False,
    tidy: Callable[[str, RunContext], None] | None = None,
) -> Callable[[Callable[[Inputs, RunContext], Result]], Step[Inputs, Result]]:
    """Make a cached step of a pure function.

    Args:
        name: The step's name, in keys, records and the Prefect UI.
        result: The class of its result.
        code: Modules whose code decides the result: the step's own module, and the programs that
            it starts by name. What they import of ours is added.
        libraries: Distributions whose versions decide the result.
        exclusive: Whether workers that meet the same key wait for the one that does the work.
        on_pool: Whether the workers of a run's pool do it, if the run has one.
        tidy: Removes what the work left in the store. Called with the key once the result is
            recorded, and when it is used again, in case that the first call was cut short.
    """

    def wrap(work: Callable[[Inputs, RunContext], Result]) -> Step[Inputs, Result]:
        return Step(name, work, result, code, libraries, exclusive, on_pool, tidy)

    return wrap


def _origin(result: StepResult) -> str:
    provenance = result.provenance
    if provenance is None:
        return "From an earlier run"
    return f"From run {provenance.run_name} at {provenance.at}"
