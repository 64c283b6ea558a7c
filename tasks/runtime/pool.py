"""A run's side of a pool: its workers do steps, and record them in the store both sides share.

The parent puts a request in the store and starts a run of the pool's deployment under an
idempotency key, so that two parents with the same work start one run. Nothing travels through
Prefect's results: when the run has ended, the steps' records are there. Parents that wait say so in
the store (tasks/runtime/pool_run.py); the run stops after its checkpoint once nobody waits.

A run that ended without the records is never revived. Every parent counts up to the next number,
and starts or joins the run of that number, which goes on from the checkpoints in the store.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect.utilities.urls import url_for

from tasks.contracts.base import Contract, digest_of
from tasks.contracts.errors import (
    BurnishError,
    CodeFailed,
    PoolFailed,
    PoolRunCancelled,
    from_json,
)
from tasks.contracts.pool import POOL_FLOW, PoolRun, Request, StepRequest, Taken, Waiter
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.pool_run import BEAT_SECONDS, run_path, waiters_path
from tasks.runtime.prefect_api import brief_client
from tasks.runtime.run_beat import rewriting
from tasks.runtime.telling import tell
from tasks.runtime.termination import check_sigterm
from tasks.storage.source_copies import with_stored_copies
from tasks.storage.store import Store, open_store

SILENT_SECONDS = 60.0
"""How long a running run may be silent before it is taken for dead."""
START_SECONDS = 300.0
"""How long a run may take from its worker's first sign to its own first word."""
_POLL_SECONDS = 1.0
_CRASHES = 3
_KEPT = "Its worker keeps a checkpoint and stops, unless another run waits for it too."


class PoolStep(Protocol):
    """What a request says of a step (tasks/runtime/cache.py)."""

    name: str

    @property
    def code_digest(self) -> str: ...


class Child(NamedTuple):
    """A run of the pool: what Prefect and the run itself say of it."""

    run: FlowRun
    said: PoolRun | None

    @property
    def link(self) -> str:
        """Its name, with a link to its page, as markdown."""
        link = url_for("flow-run", obj_id=self.run.id)
        return f"[{self.run.name}]({link})" if link else str(self.run.name)


def step_request(
    step: PoolStep, inputs: Contract, context: RunContext, **takes: Taken
) -> StepRequest:
    """What asks a worker to do a step.

    Local files of its sources go to the store, since a worker may be on another machine.

    Args:
        step: The step.
        inputs: Its inputs; those that it takes are not read.
        context: The run.
        takes: What it takes from earlier steps of the request.

    Raises:
        StorageFailed, NoAccess: The store cannot be written.
    """
    portable = with_stored_copies(inputs, open_store(context.store))
    plain = portable.model_dump(mode="json", exclude=set(takes))
    return StepRequest(step=step.name, inputs=plain, takes=takes)


def check_pool(pool: str) -> None:
    """Refuse a pool whose workers cannot be asked.

    Raises:
        PoolFailed: Prefect's server has no deployment for it.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(f"{POOL_FLOW}/{pool}")
        except ObjectNotFound:
            raise PoolFailed(
                f"plan.pool {pool}",
                f"no deployment {POOL_FLOW}/{pool} on the Prefect server {client.api_url}",
                "the server that the pool's workers use",
                f"run `python -m infra.gpu_workers --pool {pool}` on the machine with the GPUs, "
                "with the same PREFECT_API_URL, or leave plan.pool empty",
            ) from None


def compute_on_pool(
    request: Request,
    key: str,
    is_done: Callable[[], bool],
    context: RunContext,
    on_child: Callable[[str], None] | None = None,
) -> None:
    """Have a pool's worker do the steps of a request, and wait until it has.

    Args:
        request: The steps.
        key: What it does first: equal keys are done once.
        is_done: Whether that is recorded.
        context: The run, whose `pool` it is.
        on_child: Called with each run of the pool that this one waits for: its name, with a link.

    Raises:
        BurnishError: What failed there.
        PoolChanged: The worker is another machine than the request says.
        PoolRunCancelled: A person cancelled the worker's run.
        PoolFailed: Its runs crashed time and again, or there is no deployment.
    """
    store, digest = open_store(context.store), digest_of(request)
    store.objects.write(f"requests/{digest}.json", request.model_dump_json(indent=1).encode())
    # A refreshed step is done anew for each run that asks, and once for all its retries.
    refreshed = context.run_id if request.refresh else ""
    prefix = digest_of([store.uri, context.pool, key, refreshed])
    crashes = 0
    for generation in itertools.count():
        name = f"{context.run_name}-{'on' if request.steps else 'asks'}-{context.pool}"
        name += f"-{generation + 1}" if generation else ""
        child = _start_or_join(f"{prefix}/{generation}", name, request.name, digest, context)
        if child.run.state and child.run.state.is_final():
            done = child.run.state.is_completed() if refreshed else is_done()
            if done:
                return
            continue
        if on_child:
            on_child(child.link)
        child = _wait(child, store, context)
        if _is_done(child, context.pool):
            return
        if child.run.state.is_crashed() and not (child.said and child.said.ended):
            crashes += 1
            if crashes >= _CRASHES:
                raise _crashed(child, context.pool)
        _say(f"Run {child.run.name} on pool {context.pool} ended early: another one goes on.")


def _start_or_join(key: str, name: str, recipe: str, digest: str, context: RunContext) -> Child:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"{POOL_FLOW}/{context.pool}")
        run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters={
                "request": digest,
                "store": context.store,
                "run_id": context.run_id,
                "run_name": context.run_name,
            },
            idempotency_key=key,
            name=name,
            tags=[recipe],
        )
    return Child(run, None)


def _wait(child: Child, store: Store, context: RunContext) -> Child:
    """Wait for the end of a run of the pool, and pass on what it says."""
    silence, told_waiting = _Silence(), False
    with _waiting(store, str(child.run.id), context.run_name):
        while True:
            check_sigterm()
            child = _look(child, store)
            state = child.run.state
            if state.is_final():
                # Its last word is written before its state.
                return _look(child, store)
            if state.is_scheduled() and not told_waiting:
                told_waiting = True
                _say(f"Waiting for a worker of pool {context.pool} to take run {child.run.name}.")
            elif silence.breaks(child.said):
                _say(f"Run {child.run.name} on pool {context.pool}: {child.said.doing}")
            if silence.is_too_long(state):
                _declare_dead(child, silence)
            time.sleep(_POLL_SECONDS)


class _Silence:
    """How long a run has said nothing, by this process's clock."""

    def __init__(self) -> None:
        self._beats, self._doing = -1, ""
        self._since, self._state = time.monotonic(), ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    def breaks(self, said: PoolRun | None) -> bool:
        """Take a word of the run; whether it says something new."""
        if said and said.beats != self._beats:
            self._beats, self._since = said.beats, time.monotonic()
        new = bool(said and said.doing and said.doing != self._doing)
        self._doing = said.doing if said else ""
        return new

    def is_too_long(self, state: State) -> bool:
        if state.name != self._state:
            self._state, self._since = state.name or "", time.monotonic()
        if not (state.is_running() or state.is_pending() or state.is_cancelling()):
            return False
        return self.seconds > (SILENT_SECONDS if self._beats >= 0 else START_SECONDS)


def _declare_dead(child: Child, silence: _Silence) -> None:
    """Mark a run as crashed whose process and worker are gone: nothing else would."""
    message = f"Not heard of for {silence.seconds:.0f} s: its worker is gone."
    run_logger().warning("Run %s: %s", child.run.name, message)
    with contextlib.suppress(Exception), brief_client() as client:
        client.set_flow_run_state(child.run.id, Crashed(message=message), force=True)


def _look(child: Child, store: Store) -> Child:
    """What is known now; what cannot be asked is as before."""
    run, said = child
    with contextlib.suppress(Exception), brief_client() as client:
        run = client.read_flow_run(run.id)
    with contextlib.suppress(BurnishError, ValueError):
        if found := store.objects.read(run_path(str(run.id))):
            said = PoolRun.model_validate_json(found[0])
    return Child(run, said)


@contextlib.contextmanager
def _waiting(store: Store, child_id: str, run_name: str) -> Iterator[None]:
    """Inside this block, the run of the pool can see that somebody waits for it."""
    path = f"{waiters_path(child_id)}{uuid.uuid4().hex}.json"

    def word(beats: int) -> bytes:
        return Waiter(run_name=run_name, beats=beats).model_dump_json().encode()

    with rewriting(store, path, word, BEAT_SECONDS):
        try:
            yield
        except BaseException as error:
            # The report of a run says it, whatever ended it.
            if not isinstance(error, BurnishError):
                error.kept = _KEPT
            raise


def _is_done(child: Child, pool: str) -> bool:
    """Whether a run that ended did what was asked; False if another one may go on.

    Raises:
        BurnishError: It failed, or a person cancelled it.
    """
    state, said = child.run.state, child.said or PoolRun()
    if said.error:
        error = from_json(said.error)
        error.history, error.kept = list(said.history), said.kept
        raise error
    if state.is_completed():
        return True
    if said.ended in ("unwanted", "stopped"):
        return False
    where = f"run {child.run.name} on pool {pool}"
    if state.is_cancelled():
        cancelled = PoolRunCancelled(
            where,
            "that a person cancelled it",
            "to run to its end",
            "start the run again when it should train: it goes on from the newest checkpoint",
        )
        cancelled.kept = said.kept
        raise cancelled
    if state.is_failed():
        raise CodeFailed(
            where,
            state.message or "a failure without a message",
            "the steps' results",
            "open that run's page: its log says more",
        )
    return False


def _crashed(child: Child, pool: str) -> PoolFailed:
    return PoolFailed(
        f"pool {pool}",
        f"{_CRASHES} runs that crashed, the last one {child.run.name} "
        f"({child.run.state.message or 'without a message'})",
        "a worker that stays up",
        "look at the worker's log and at its machine's memory, then start the run again",
    )


def _say(sentence: str) -> None:
    if not tell(sentence):
        run_logger().info(sentence)


def as_plain(value: Any) -> Any:
    """A value of a step's result as a request's plain value."""
    return value.model_dump(mode="json") if isinstance(value, Contract) else value
