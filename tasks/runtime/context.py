"""The run that a step is part of."""

from __future__ import annotations

from tasks.contracts.base import Contract
from tasks.contracts.machine import Machine


class RunContext(Contract):
    """The store and the flow run. Nothing in it may change a result.

    Attributes:
        store: The store's URI.
        run_id, run_name: The flow run, for provenance.
        refresh: Steps to run again even if their result is cached.
        repair: Steps to run again because one of their artifacts was found damaged. Their intact
            artifacts are still used.
        pool: The work pool whose workers train and score; empty: this process does.
        machine: What those workers are: their libraries enter the keys of their steps. None without
            a pool.
    """

    store: str
    run_id: str = ""
    run_name: str = ""
    refresh: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()
    pool: str = ""
    machine: Machine | None = None
