"""Runs that are said to be running, although nobody runs them any more.

A worker reports the end of its runs' processes. If worker and run are lost together, as a machine
is, nothing reports it: the run stays *Running* for ever. Prefect's own remedy, an automation on
missing heartbeats, also crashes runs that are suspended, and healthy ones whose server was away. So
a run counts as lost only if both its heartbeat at the server and its beat in the store have stood
still for three intervals, by the clock of who looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from tasks.contracts.errors import BurnishError
from tasks.runtime.pool_run import run_path
from tasks.runtime.run_beat import beat_path
from tasks.storage.store import Store

INTERVALS = 3


class Watched(NamedTuple):
    """A run that may be lost.

    Attributes:
        run: What Prefect says of it.
        store: Where it says that it lives.
        heartbeat_seconds: How often it sends Prefect a heartbeat.
    """

    run: FlowRun
    store: Store
    heartbeat_seconds: float


class _Signs(NamedTuple):
    event: str
    beats: tuple[str, ...]


def lost_runs(
    client: SyncPrefectClient,
    running: Iterable[Watched],
    sleep: Callable[[float], None] = time.sleep,
) -> list[FlowRun]:
    """The runs that nobody runs any more. It takes three of their intervals if there may be one.

    Args:
        client: Of the server that knows them.
        running: Runs that are running or being cancelled.
        sleep: Waits so many seconds.

    Raises:
        Exception: The server cannot be asked, so nothing is known.
    """
    suspects = {}
    for each in running:
        event = newest_event(client, each.run)
        if event and _age(event) < INTERVALS * each.heartbeat_seconds:
            continue
        if signs := _signs(each, event):
            suspects[each.run.id] = (each, signs)
    if not suspects:
        return []
    sleep(max(INTERVALS * each.heartbeat_seconds for each, _ in suspects.values()))
    lost = []
    for each, before in suspects.values():
        run = client.read_flow_run(each.run.id)
        state = run.state
        if not state or not (state.is_running() or state.is_cancelling()):
            continue
        if _signs(each, newest_event(client, run)) == before:
            lost.append(run)
    return lost


def newest_event(client: SyncPrefectClient, run: FlowRun) -> dict | None:
    """The newest event of a run that the server has, heartbeats included; None without one."""
    wanted = {
        "filter": {"resource": {"id": [f"prefect.flow-run.{run.id}"]}, "order": "DESC"},
        "limit": 1,
    }
    answer = client.request("POST", "/events/filter", json=wanted)
    answer.raise_for_status()
    found = answer.json()["events"]
    return found[0] if found else None


def _age(event: dict) -> float:
    """Seconds since the server received an event. Only to pass over who surely lives."""
    received = datetime.fromisoformat(event["received"].replace("Z", "+00:00"))
    return (datetime.now(UTC) - received).total_seconds()


def _signs(watched: Watched, event: dict | None) -> _Signs | None:
    """What changes while a run lives; None if the store cannot be asked, so nothing is known."""
    run_id = str(watched.run.id)
    try:
        found = [watched.store.objects.read(path) for path in (beat_path(run_id), run_path(run_id))]
    except BurnishError:
        return None
    return _Signs(event["id"] if event else "", tuple(word[1] if word else "" for word in found))
