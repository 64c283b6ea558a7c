"""The `burnish` command: retrain, check a recipe, follow deployments, repair a damaged log."""

from __future__ import annotations

import sys
import time
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tasks.contracts.errors import BadRecipe, BurnishError, NotFound
from tasks.contracts.recipe import Recipe, parse_recipe

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

    Exit status: 0 released or up to date, 3 rejected by the gate, 1 failed, 2 wrong usage.
    """
    checked = checked_recipe(recipe, set_ or [], store)
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.retrain import STEPS
    from flows.retrain import retrain as flow
    from flows.train import preload_if_data_changed

    if refresh not in ("nothing", *STEPS):
        raise typer.BadParameter(f"{refresh!r} is not one of {', '.join(STEPS)}")
    preload_if_data_changed(checked)
    # The command itself reports how the run ends, so it needs no heartbeat, which would delay its
    # exit by up to a second.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        state = flow(checked, refresh, return_state=True)
    if not state.is_completed():
        typer.echo(f"\n{checked.name}: {state.name}. {state.message}", err=True)
        raise typer.Exit(1)
    typer.echo(f"\n{state.result()}")
    raise typer.Exit(EXIT_REJECTED if state.name == "Rejected" else 0)


@app.command()
def check(recipe: RecipeName, set_: Settings = None) -> None:
    """Check a recipe, without touching data or model, and print it with all its defaults."""
    checked = checked_recipe(recipe, set_ or [], "")
    typer.echo(yaml.safe_dump(checked.model_dump(mode="json"), sort_keys=False))


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


def checked_recipe(name: str, settings: list[str], store: str) -> Recipe:
    """Read a recipe; one that is invalid ends the command as wrong usage."""
    try:
        return read_recipe(name, settings, store)
    except BurnishError as error:
        typer.echo(f"{error.cause}: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None


def read_recipe(name: str, settings: list[str], store: str) -> Recipe:
    """Read and check a recipe file, with the command line's changes.

    Raises:
        NotFound: There is no such file, and no shipped recipe of that name.
        BadRecipe: It is not valid.
    """
    path = find_recipe(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRecipe(
            str(path), " ".join(str(error).split()), "a YAML file", "correct it there"
        ) from None
    if isinstance(data, dict):
        for setting in [*settings, *([f"store={store}"] if store else [])]:
            apply_setting(data, setting)
    return parse_recipe(data, str(path))


def find_recipe(name: str) -> Path:
    """A recipe file by its path, or a shipped one by its name."""
    shipped = Path(str(resources.files("flows.recipes")))
    for path in (Path(name), shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise NotFound(
        f"recipe {name}", "no such file", f"a file, or one of: {known}", "name one of these"
    )


def apply_setting(data: dict[str, Any], setting: str) -> None:
    """Apply `path.to.field=value` to a recipe's plain values; the value is read as YAML."""
    path, equals, value = setting.partition("=")
    if not equals or not path:
        raise BadRecipe(f"--set {setting}", "no '='", "--set path.to.field=value", "add the value")
    *parents, last = path.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise BadRecipe(
                f"--set {setting}",
                f"that '{parent}' is a value",
                "a group of fields",
                "`burnish check RECIPE` shows all fields",
            )
    data[last] = yaml.safe_load(value)


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Known errors print one sentence instead of a traceback."""
    try:
        app(arguments)
    except BurnishError as error:
        typer.echo(f"{error.cause}: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
