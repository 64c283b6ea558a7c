"""Commands of `burnish` on what is released: take it back, hold it, let it through again.

All but `approve` and `reject` work on the store alone, even while the Prefect server is away.
"""

from __future__ import annotations

import getpass
import platform
from typing import Annotated

import typer

from tasks.contracts.errors import BadRequest


def _me() -> str:
    return f"{getpass.getuser()}@{platform.node()}"


Model = Annotated[str, typer.Argument(help="The model: a recipe's name.")]
Channel = Annotated[str, typer.Option(help="The channel.")]
Reason = Annotated[str, typer.Option(help="Why: it is kept in the log.")]
By = Annotated[
    str, typer.Option(help="Who you are, for the log.", default_factory=_me, show_default="you")
]
StoreUri = Annotated[
    str,
    typer.Option(help="Folder or s3://bucket/prefix. Default: $BURNISH_STORE, or .burnish"),
]


def rollback(
    name: Model,
    reason: Reason,
    by: By,
    to: Annotated[
        str, typer.Option(help="The version to return to. Default: the one before.")
    ] = "",
    channel: Channel = "production",
    store: StoreUri = "",
) -> None:
    """Deploy an earlier release again, at once.

    The release that is left is quarantined: no run deploys its files again until `burnish lift`.
    The same command goes on with a rollback that was interrupted; after one that is done, it goes
    back one further.
    """
    from tasks.release.rollback import roll_back
    from tasks.runtime.context import RunContext

    context = RunContext(store=_uri(store))
    entry = roll_back(name, channel, to, by, _given(reason), context)
    for publication in entry.release.publications:
        typer.echo(f"revealed at {publication.uri}")
    typer.echo(
        f"{name}: version {entry.release.version} is deployed on {channel} again; version "
        f"{entry.event.data.previous} is quarantined until `burnish lift {name} "
        f"{entry.event.data.previous} --reason WHY`"
    )


def lift(
    name: Model,
    version: Annotated[str, typer.Argument(help="The quarantined version, or its beginning.")],
    reason: Reason,
    by: By,
    store: StoreUri = "",
) -> None:
    """Let a quarantined release be deployed again, by the next run that makes it."""
    from tasks.release import holds

    for ended in holds.lift(_open(store), name, version, by, _given(reason)):
        typer.echo(f"{name}: version {ended.version} may be deployed again")


def freeze(
    name: Model, reason: Reason, by: By, channel: Channel = "production", store: StoreUri = ""
) -> None:
    """Let no run release anything on a channel, until `burnish unfreeze`. A rollback still can."""
    from tasks.release import holds

    holds.freeze(_open(store), name, channel, by, _given(reason))
    typer.echo(f"{name}: {channel} is frozen; runs end Held until `burnish unfreeze {name}`")


def unfreeze(
    name: Model, reason: Reason, by: By, channel: Channel = "production", store: StoreUri = ""
) -> None:
    """Let runs release on a frozen channel again."""
    from tasks.release import holds

    holds.unfreeze(_open(store), name, channel, by, _given(reason))
    typer.echo(f"{name}: runs release on {channel} again")


Run = Annotated[str, typer.Argument(help="The run that waits: its name, or its id.")]


def approve(run: Run, reason: Reason, by: By) -> None:
    """Approve the release that a run waits with: it is published at once."""
    _answer(run, "approve", by, reason)
    typer.echo(f"{run}: approved; it goes on as soon as a worker has time")


def reject(run: Run, reason: Reason, by: By) -> None:
    """Reject the release that a run waits with."""
    _answer(run, "reject", by, reason)
    typer.echo(f"{run}: rejected; nothing of it is published")


def _answer(run: str, decision: str, by: str, reason: str) -> None:
    from prefect.client.orchestration import get_client

    from flows.approval import resume, waiting_run
    from flows.prefect_server import lasting_server
    from tasks.contracts.approval import Answer

    answer = Answer(decision=decision, by=by, reason=_given(reason))
    # Prefect's own client asks a busy server again.
    with lasting_server(), get_client(sync_client=True) as client:
        resume(client, waiting_run(client, run), answer)


COMMANDS = (approve, reject, rollback, lift, freeze, unfreeze)


def _given(reason: str) -> str:
    if not reason.strip():
        raise BadRequest("--reason", "an empty text", "why, for those who read the log", "say it")
    return reason.strip()


def _open(store: str):
    from tasks.storage.store import open_store

    return open_store(_uri(store))


def _uri(store: str) -> str:
    from tasks.storage.store import default_store

    return store or default_store()
