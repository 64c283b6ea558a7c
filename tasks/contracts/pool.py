"""What a run asks of a pool's workers, and what they say: small objects in the store."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tasks.contracts.base import Contract
from tasks.contracts.machine import Machine

POOL_FLOW = "steps"
"""The flow that a pool's workers run; its deployment has the pool's name."""

Ending = Literal["", "done", "failed", "unwanted", "cancelled", "stopped"]


class Taken(Contract):
    """A value that a step takes from an earlier one's result.

    Attributes:
        step: The earlier step's place in the request.
        field: The field of its result.
    """

    step: int
    field: str


class StepRequest(Contract):
    """A step to do.

    Attributes:
        step: Its name.
        inputs: Its inputs as plain values, without those that it takes.
        takes: By the name of the input.
    """

    step: str
    inputs: dict[str, Any]
    takes: dict[str, Taken] = Field(default_factory=dict)


class Request(Contract):
    """Steps for a worker of a pool, in order. Each is keyed and recorded by itself.

    Attributes:
        name: The recipe's name, for people.
        steps: The steps; none to ask only what machine it is.
        machine: What the workers are taken to be; None if that is not known.
        code: By the name of a step, the digest of its code where the request was made.
        refresh, repair: As in the run's context.
    """

    name: str
    steps: tuple[StepRequest, ...] = ()
    machine: Machine | None = None
    code: dict[str, str] = Field(default_factory=dict)
    refresh: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()


class PoolRun(Contract):
    """What the run of a worker says of itself, for those who wait for it.

    Attributes:
        beats: Counts up while it lives.
        at: When this was written.
        host: Where it runs.
        doing: What it does, as a sentence.
        ended: How it ended: all steps are done; one failed; nobody waited any more; a person
            cancelled it; its worker was shut down. Empty before.
        error: What failed, as `BurnishError.to_json`.
        kept: How far a training got, and where the next run goes on, as a sentence.
        history: The losses of a training that failed.
    """

    beats: int = 0
    at: str = ""
    host: str = ""
    doing: str = ""
    ended: Ending = ""
    error: dict[str, Any] | None = None
    kept: str = ""
    history: tuple[dict[str, Any], ...] = ()


class Waiter(Contract):
    """A run that waits for a worker's run.

    Attributes:
        run_name: Its name.
        beats: Counts up while it waits.
    """

    run_name: str
    beats: int = 0
