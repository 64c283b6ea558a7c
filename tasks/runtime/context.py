"""The run that a step works for."""

from __future__ import annotations

from tasks.contracts.base import Contract


class RunContext(Contract):
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
