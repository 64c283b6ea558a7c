"""The `burnish` command: retrain, check and deploy recipes, follow what is deployed, repair it."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Annotated

import typer
import yaml

from flows import release_commands
from flows.recipe_files import read_recipe, shipped_recipes
from tasks.contracts.errors import BadData, BurnishError, NotFound
from tasks.contracts.recipe import Recipe
from tasks.contracts.recipe_changes import NO_CHANGES, Changes

app = typer.Typer(
    help="Keep a fine-tuned model good while its data keeps changing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXIT_USAGE, EXIT_REJECTED = 2, 3
RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field, such as --set training.epochs=2. Can be repeated."),
]
StoreUri = Annotated[
    str,
    typer.Option(help="Folder or s3://bucket/prefix. Default: $BURNISH_STORE, or .burnish"),
]


@app.command()
def retrain(
    recipe: RecipeName,
    set_: Settings = None,
    refresh: Annotated[
        str, typer.Option(help="Repeat this step and all after it, such as finetune.")
    ] = "nothing",
    store: StoreUri = "",
) -> None:
    """Retrain a model, and release it if it passes the gate.

    Exit status: 0 released or up to date, 3 rejected by the gate or held by a person, 1 failed, 2
    wrong usage, 130 stopped by Ctrl-C: the same command goes on from there.
    """
    changes = _changes(set_, store)
    checked = checked_recipe(recipe, changes)
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.prefect_server import some_server
    from flows.retrain import STEPS
    from flows.retrain import retrain as flow
    from flows.terminal import heeding_ctrl_c, shown
    from flows.train import preload_if_data_changed

    if refresh not in ("nothing", *STEPS):
        raise typer.BadParameter(f"{refresh!r} is not one of {', '.join(STEPS)}")
    preload_if_data_changed(checked)
    # The command itself reports how the run ends, so it needs no heartbeat, which would delay its
    # exit by up to a second.
    quick = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with heeding_ctrl_c(checked.name), some_server(), quick, shown():
        state = flow(recipe, changes, refresh, return_state=True)
    if not state.is_completed():
        typer.echo(f"\n{checked.name}: {state.message}", err=True)
        raise typer.Exit(1)
    typer.echo(f"\n{state.result()}")
    raise typer.Exit(EXIT_REJECTED if state.name in ("Rejected", "Held") else 0)


@app.command()
def check(recipe: RecipeName, set_: Settings = None) -> None:
    """Check a recipe, without touching data or model, and print it with all its defaults."""
    checked = checked_recipe(recipe, _changes(set_))
    typer.echo(yaml.safe_dump(checked.model_dump(mode="json"), sort_keys=False))


@app.command()
def deploy(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="Recipe files, or names of shipped ones. Default: all shipped ones."),
    ] = None,
    cron: Annotated[
        str, typer.Option(help="When to retrain, such as '0 3 * * *'. It is switched on.")
    ] = "",
    timezone: Annotated[str, typer.Option(help="Of --cron, such as Europe/Paris.")] = "UTC",
    pool: Annotated[str, typer.Option(help="The work pool. Default: as it was, or cpu.")] = "",
    store: Annotated[
        str, typer.Option(help="The store of all runs. Default: as it was, or $BURNISH_STORE.")
    ] = "",
    directory: Annotated[
        str, typer.Option(help="Where runs start, on the workers. Default: this folder.")
    ] = "",
) -> None:
    """Put recipes on the Prefect server, to be run and scheduled in its UI.

    Repeating it keeps what was changed there: schedules, default values, tags.
    """
    names = recipes or shipped_recipes()
    for name in names:
        checked_recipe(name, NO_CHANGES)
    from flows.deployments import deploy as deploy_recipe
    from flows.prefect_server import lasting_server

    with lasting_server():
        for name in names:
            made = deploy_recipe(
                name, pool, cron, timezone, store, directory, take_over=bool(recipes)
            )
            typer.echo(f"{made.name}: {made.recipe} on pool {made.pool}, store {made.store}")


@app.command()
def events(
    name: Annotated[str, typer.Argument(help="The model: a recipe's name.")],
    channel: Annotated[str, typer.Option(help="The channel to follow.")] = "production",
    store: StoreUri = "",
    after: Annotated[int, typer.Option(help="Only entries with a higher number.")] = 0,
    follow: Annotated[bool, typer.Option(help="Keep printing new events as they arrive.")] = False,
    latest: Annotated[bool, typer.Option(help="Only the current deployment.")] = False,
) -> None:
    """Print a model's deployment events, one JSON document per line, oldest first.

    They are read from the log in the store: a consumer needs nothing else to know what to serve.
    """
    from tasks.release import deployment_log
    from tasks.storage.store import default_store, open_store

    opened = open_store(store or default_store())
    entry = deployment_log.deployed(opened, name, channel)
    if entry is None:
        known = ", ".join(deployment_log.known_logs(opened)) or "no model"
        typer.echo(
            f"nothing is deployed for {name} on {channel} in {opened.uri}, which has {known}",
            err=True,
        )
        if not follow:
            raise typer.Exit(1)
    if latest and entry:
        typer.echo(entry.event.model_dump_json())
        return
    while True:
        for entry in deployment_log.entries(opened, name, channel, after):
            after = entry.number
            if entry.event:
                typer.echo(entry.event.model_dump_json())
        if not follow:
            return
        sys.stdout.flush()
        time.sleep(2)


@app.command()
def data_changed(
    name: Annotated[str, typer.Argument(help="The recipe whose data have changed.")],
) -> None:
    """Say that a recipe's data have changed: its watch then looks at once.

    Exit status: 0 once the Prefect server has confirmed the event, 1 otherwise.
    """
    from flows.deployments import watched
    from flows.prefect_server import lasting_server
    from tasks.watch.change_event import send_change

    with lasting_server():
        if not watched(name):
            raise NotFound(
                f"the watch of {name}",
                "no such deployment",
                "a recipe that is watched",
                "set watch.every_minutes in the recipe, and run `burnish deploy RECIPE`",
            )
        send_change(name)
    typer.echo(f"{name}: the server has the event; the watch looks now")


@app.command()
def accept_data(
    name: Annotated[str, typer.Argument(help="The recipe whose data were held back.")],
    store: StoreUri = "",
) -> None:
    """Accept the data that the watch has held back, as they are: it retrains on them."""
    from tasks.storage.store import default_store, open_store
    from tasks.watch.records import accept, read_state

    opened = open_store(store or default_store())
    state = read_state(opened, name)
    if not state.held:
        raise NotFound(
            f"data of {name} in {opened.uri}",
            "none that are held back",
            "data that the watch has held back",
            "see the watch's last run, or name another store",
        )
    if not state.acceptable:
        raise BadData(
            f"data of {name}",
            f"what cannot be trained on ({state.held})",
            "data that are whole, if unusual",
            "correct the data: the watch then goes on by itself",
        )
    accepted = accept(opened, name)
    typer.echo(f"{name}: accepted, though: {accepted.held}")
    with contextlib.suppress(Exception):  # The watch looks by its schedule, too.
        data_changed(name)


@app.command()
def tend() -> None:
    """Look after runs, deliveries and approvals at once, as the deployment `tend` does every few
    minutes.

    Exit status: 0 everything was done, 1 something could not be.
    """
    from flows.prefect_server import lasting_server
    from flows.tend import tend as flow

    with lasting_server():
        state = flow(return_state=True)
    typer.echo(state.message)
    raise typer.Exit(0 if state.is_completed() else 1)


@app.command()
def repair(
    name: Annotated[str, typer.Argument(help="The model: a recipe's name.")],
    channel: Annotated[str, typer.Option(help="The channel to repair.")] = "production",
    store: StoreUri = "",
) -> None:
    """Repair a model's damaged deployment log or release from what is whole elsewhere.

    Let no run of the model be under way. Exit status: 0 all is whole now, 1 something is not.
    """
    from tasks.release.repair import repair as repair_model
    from tasks.storage.store import default_store, open_store

    findings = repair_model(open_store(store or default_store()), name, channel)
    for well, sentence in findings:
        typer.echo(f"{'ok' if well else 'DAMAGED'}  {sentence}")
    raise typer.Exit(0 if all(well for well, _ in findings) else 1)


for _command in release_commands.COMMANDS:
    app.command()(_command)


def checked_recipe(name: str, changes: Changes) -> Recipe:
    """Read a recipe; one that is invalid ends the command as wrong usage."""
    try:
        return read_recipe(name, changes)
    except BurnishError as error:
        typer.echo(f"{error.cause}: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None


def _changes(settings: list[str] | None, store: str = "") -> Changes:
    return Changes(other=(*(settings or ()), *([f"store={store}"] if store else ())))


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Known errors print one sentence instead of a traceback."""
    try:
        app(arguments)
    except BurnishError as error:
        typer.echo(f"{error.cause}: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
