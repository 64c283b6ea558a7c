"""The run that a step is part of."""

from __future__ import annotations

from tasks.contracts.base import Contract


class RunContext(Contract):
    """The store and the flow run. Nothing in it may change a result.

    Attributes:
        store: The store's URI.
        run_id, run_name: The flow run, for provenance.
        refresh: Steps to run again even if their result is cached.
        repair: Steps to run again because one of their artifacts was found damaged. Their intact
            artifacts are still used.
    """

    store: str
    run_id: str = ""
    run_name: str = ""
    refresh: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()
