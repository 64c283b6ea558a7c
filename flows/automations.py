"""Prefect automations by name: made once, updated after, and left off if a person put them off."""

from __future__ import annotations

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import AutomationCore


def put_automation(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Create an automation, or update the one of its name; whether that is on stays as it is."""
    found = _named(client, wanted.name)
    if not found:
        client.request("POST", "/automations/", json=_plain(wanted)).raise_for_status()
        return
    first, *others = found
    kept = wanted.model_copy(update={"enabled": first["enabled"]})
    answer = client.request("PUT", f"/automations/{first['id']}", json=_plain(kept))
    answer.raise_for_status()
    for each in others:
        _delete(client, each["id"])


def delete_automation(client: SyncPrefectClient, name: str) -> None:
    """Delete the automations of a name."""
    for each in _named(client, name):
        _delete(client, each["id"])


def _named(client: SyncPrefectClient, name: str) -> list[dict]:
    wanted = {"automations": {"name": {"any_": [name]}}}
    answer = client.request("POST", "/automations/filter", json=wanted)
    answer.raise_for_status()
    return answer.json()


def _delete(client: SyncPrefectClient, identity: str) -> None:
    client.request("DELETE", f"/automations/{identity}").raise_for_status()


def _plain(automation: AutomationCore) -> dict:
    return automation.model_dump(mode="json", exclude={"id", "owner_resource"}, exclude_none=True)
