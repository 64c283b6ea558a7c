"""The event that says that data have changed: it wakes the watch, and says nothing else.

What is there is for the watch to see: no event chooses what a run trains on.
"""

from __future__ import annotations

import time

from prefect.events import Event

from tasks.contracts.errors import StorageFailed
from tasks.runtime.prefect_api import brief_client, post_event

EVENT = "burnish.data.changed"
_CONFIRM_SECONDS = 20.0


def resource_of(name: str) -> str:
    """The event's resource, for the data of a recipe."""
    return f"burnish.data.{name}"


def send_change(name: str) -> None:
    """Post the event, and wait until the server shows it among its events.

    Raises:
        StorageFailed: It does not.
        Exception: The server cannot be reached, or refuses it.
    """
    resource = {"prefect.resource.id": resource_of(name), "prefect.resource.name": name}
    event = Event(event=EVENT, resource=resource)
    with brief_client() as client:
        post_event(client, event)
        wanted = {"filter": {"id": {"id": [str(event.id)]}}, "limit": 1}
        deadline = time.monotonic() + _CONFIRM_SECONDS
        while time.monotonic() < deadline:
            found = client.request("POST", "/events/filter", json=wanted)
            found.raise_for_status()
            if found.json()["events"]:
                return
            time.sleep(0.2)
    raise StorageFailed(
        f"event {EVENT} for {name}",
        f"nothing of it among the server's events after {_CONFIRM_SECONDS:g} s",
        "the event",
        "look whether the server's services run, and send it again",
    )
