"""What the watch of a recipe's data remembers, in the store under `watch/<recipe>/`.

The watch decides by what is there now, not by what happened: `state.json` is what it saw at its
last look; `verdict.json` is written by runs, and says which data reached a verdict last;
`accepted.json` is written by people, who accept data that the watch has held back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from tasks.contracts.base import Contract
from tasks.contracts.errors import StorageFailed
from tasks.storage.store import Store

Record = TypeVar("Record", bound=Contract)


class Seen(Contract):
    """Data whose rows are known.

    Attributes:
        digest: Of the files.
        rows: As read.
        labels: Of a classifier's rows; empty otherwise.
    """

    digest: str
    rows: int
    labels: tuple[str, ...] = ()


def seen(digest: str, report: dict[str, Any]) -> Seen:
    """Data whose rows are known.

    Args:
        digest: Of their files.
        report: The load step's report on them.
    """
    labels = tuple(report.get("labels", ()))
    return Seen(digest=digest, rows=report["rows_read"], labels=labels)


class DataVerdict(Contract):
    """The data that reached a verdict last.

    Attributes:
        data: What they were.
        outcome: How the run ended: `Released`, `Up to date` or `Rejected`.
        run, run_id: The run.
        at: UTC, ISO 8601.
    """

    data: Seen
    outcome: str
    run: str
    run_id: str
    at: str


class Accepted(Contract):
    """Data that a person has accepted, after the watch held them back.

    Attributes:
        digest: Of the files.
        attempts: How many retrainings of them had been started before: more are allowed now.
        at: UTC, ISO 8601.
    """

    digest: str
    attempts: int
    at: str


class WatchState(Contract):
    """What the watch saw at its last look.

    Attributes:
        digest: Of the data; `missing` if there were none.
        looked_at: When it looked last. All times are UTC, ISO 8601.
        changed_at: When it first saw these data.
        waiting_since: When it first saw data that have not reached a verdict; empty if they have.
        attempts: How many retrainings of these data it has started.
        run_id, run_name: The last of them.
        held: Why these data are not retrained on; empty if they are.
        acceptable: Whether a person can accept what is held: missing or broken data cannot be.
        unreachable_since: Since when the data cannot be reached; empty if they can.
        outcome, sentence: What it found, in a word or two and as a sentence.
        artifact: What the data's owner sees in Prefect.
    """

    digest: str = ""
    looked_at: str = ""
    changed_at: str = ""
    waiting_since: str = ""
    attempts: int = 0
    run_id: str = ""
    run_name: str = ""
    held: str = ""
    acceptable: bool = True
    unreachable_since: str = ""
    outcome: str = ""
    sentence: str = ""
    artifact: str = ""


def read_state(store: Store, name: str) -> WatchState:
    """What the watch saw last; an empty state before its first look."""
    return _read(store, name, "state", WatchState) or WatchState()


def write_state(store: Store, name: str, state: WatchState) -> None:
    """Remember what the watch saw."""
    _write(store, name, "state", state)


def last_verdict(store: Store, name: str) -> DataVerdict | None:
    """The data that reached a verdict last; None if none did yet."""
    return _read(store, name, "verdict", DataVerdict)


def write_verdict(store: Store, name: str, verdict: DataVerdict) -> None:
    """Remember which data reached a verdict."""
    _write(store, name, "verdict", verdict)


def accepted(store: Store, name: str) -> Accepted | None:
    """The data that a person accepted last; None if nobody did."""
    return _read(store, name, "accepted", Accepted)


def accept(store: Store, name: str) -> WatchState:
    """Accept the data that the watch saw last; returns what it had seen."""
    state = read_state(store, name)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _write(
        store,
        name,
        "accepted",
        Accepted(digest=state.digest, attempts=state.attempts, at=now),
    )
    return state


def _path(name: str, record: str) -> str:
    return f"watch/{name}/{record}.json"


def _read(store: Store, name: str, record: str, kind: type[Record]) -> Record | None:
    found = store.objects.read(_path(name, record))
    if found is None:
        return None
    try:
        return kind.model_validate_json(found[0])
    except ValidationError as error:
        raise StorageFailed(
            f"{store.uri}/{_path(name, record)}",
            f"what cannot be read ({error.error_count()} problems)",
            "what Burnish wrote there",
            "delete it: the watch then begins anew",
        ) from None


def _write(store: Store, name: str, record: str, value: Contract) -> None:
    store.objects.write(_path(name, record), value.model_dump_json(indent=1).encode())
