"""Recipes by name: shipped ones, files, and objects on S3."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from tasks.contracts.credentials import credentials_in
from tasks.contracts.errors import BadRecipe, NotFound
from tasks.contracts.recipe import Recipe, parse_recipe
from tasks.contracts.recipe_changes import NO_CHANGES, Changes
from tasks.storage.objects import open_objects


def read_recipe(name: str, changes: Changes = NO_CHANGES, locked: bool = False) -> Recipe:
    """Read and check a recipe, with changes for one run.

    Args:
        name: A shipped recipe's name, a file's path, or `s3://bucket/recipe.yaml`.
        changes: What to do differently.
        locked: Whether they are a form's or an event's, which may not change everything.

    Raises:
        NotFound: There is no such recipe.
        BadRecipe: It is not valid, or would not be with the changes.
    """
    if found := list(credentials_in(name)):
        raise BadRecipe(
            "recipe",
            f"a name with what looks like {found[0][1]}",
            "a name without credentials",
            "take it out, change it where it was issued, and set it in the worker's environment",
        )
    where, text = _read(name)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _not_yaml(where, error) from None
    if isinstance(values, dict):
        if locked:
            changes.check_unlocked(values)
        changes.apply(values)
    return parse_recipe(values, where)


def shipped_recipes() -> list[str]:
    """The names of the recipes that are shipped with Burnish, sorted."""
    return sorted(path.stem for path in _shipped().glob("*.yaml"))


def full_name(name: str) -> str:
    """A recipe's name as every worker with the same files understands it: a file's whole path.

    Raises:
        NotFound: There is no such recipe.
    """
    if name.startswith("s3://") or not Path(name).is_file():
        _read(name)
        return name
    return str(Path(name).resolve())


def _shipped() -> Path:
    return Path(str(resources.files("flows.recipes")))


def _read(name: str) -> tuple[str, str]:
    """A recipe's place, and its text."""
    if name.startswith("s3://"):
        folder, _, file = name.rpartition("/")
        found = open_objects(folder).read(file)
        if found is None:
            raise NotFound(f"recipe {name}", "no such object", "a recipe", "correct its URI")
        return name, _decoded(name, found[0])
    for path in (Path(name), _shipped() / f"{name}.yaml"):
        if path.is_file():
            return str(path), _decoded(str(path), path.read_bytes())
    raise NotFound(
        f"recipe {name}",
        "no such file",
        f"a file, or one of: {', '.join(shipped_recipes())}",
        "name one of these",
    )


def _decoded(where: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _not_yaml(where, error) from None


def _not_yaml(where: str, error: Exception) -> BadRecipe:
    return BadRecipe(where, " ".join(str(error).split()), "a YAML file", "correct it there")
