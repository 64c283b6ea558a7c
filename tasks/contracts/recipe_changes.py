"""What a person may change of a recipe for one run: the form in the Prefect UI.

Every default means *as the recipe says*. So a schedule or a trigger that sends single fields loses
nothing: Prefect replaces the whole model of defaults by what they send.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from tasks.contracts.base import Contract
from tasks.contracts.credentials import ANY_SHAPE
from tasks.contracts.errors import BadRecipe

# The server refuses such values before it stores them.
_NO_CREDENTIALS = {"not": {"pattern": ANY_SHAPE}}
_PATHS = {
    "data": "data.uri",
    "base_model": "model.uri",
    "epochs": "training.epochs",
    "learning_rate": "training.learning_rate",
    "max_length": "training.max_length",
    "quantization": "quantization",
}
"""The recipe's field behind each field of the form."""

LOCKED = ("gate", "publish", "announce", "name", "store", "unlocked")
"""What decides what is released and where: whoever may start runs may not change it by that."""


def _is_within(path: str, groups: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{group}.") for group in groups)


class Changes(Contract):
    """What to do differently from the recipe, in this run only."""

    data: str = Field(
        "",
        title="Data",
        json_schema_extra=_NO_CREDENTIALS,
        description="Train on other data: a file, folder or glob, s3://bucket/prefix, or "
        "hf://owner/name@revision. Empty: as the recipe says.",
    )
    base_model: str = Field(
        "",
        title="Base model",
        json_schema_extra=_NO_CREDENTIALS,
        description="Fine-tune another model: hf://owner/name@revision, a folder, or "
        "s3://bucket/prefix. Empty: as the recipe says.",
    )
    epochs: int = Field(
        0,
        ge=0,
        le=1000,
        title="Epochs",
        description="Passes over the training data. 0: as the recipe says.",
    )
    learning_rate: float = Field(
        0,
        ge=0,
        lt=1,
        title="Learning rate",
        description="The peak learning rate, such as 0.0005. 0: as the recipe says.",
    )
    max_length: int = Field(
        0,
        ge=0,
        le=1_048_576,
        title="Maximum length",
        description="In tokens: longer texts are truncated. At least 8. 0: as the recipe says.",
    )
    quantization: Literal["as the recipe says", "none", "nf4"] = Field(
        "as the recipe says",
        title="Quantization",
        description="How the frozen base model is held during training. nf4: in 4 bits, a quarter "
        "of the memory.",
    )
    other: tuple[Annotated[str, Field(json_schema_extra=_NO_CREDENTIALS)], ...] = Field(
        (),
        title="Other fields",
        description="Other fields of the recipe, such as training.seed=2. `burnish check RECIPE` "
        "lists all. Fields of gate, publish, announce, name and store must be changed in the "
        "recipe.",
    )

    def apply(self, recipe: dict[str, Any]) -> None:
        """Change a recipe's plain values, as read from YAML, in place.

        Raises:
            BadRecipe: A field of `other` cannot be applied.
        """
        for path, value in self._set():
            _set_field(recipe, path, value, path)
        for setting in self.other:
            path, value = _parsed(setting)
            _set_field(recipe, path, value, setting)

    def check_unlocked(self, recipe: dict[str, Any]) -> None:
        """Check that a form or an event may make these changes.

        Args:
            recipe: The recipe's plain values, unchanged.

        Raises:
            BadRecipe: It may not.
        """
        unlocked = recipe.get("unlocked") or ()
        for path in [
            *(path for path, _ in self._set()),
            *(_parsed(each)[0] for each in self.other),
        ]:
            if _is_within(path, LOCKED) and not _is_within(path, unlocked):
                raise BadRecipe(
                    f"change of {path}",
                    "what a form or an event must not change",
                    "a field that is not locked",
                    f"change it in the recipe itself, or list {path} there under 'unlocked'",
                )

    def words(self) -> str:
        """The changes as on the command line: `training.epochs=3, gate.margin=0.02`."""
        return ", ".join([*(f"{path}={value}" for path, value in self._set()), *self.other])

    def _set(self) -> Iterator[tuple[str, Any]]:
        """The recipe's fields that the form's own fields change, with their values."""
        for name, path in _PATHS.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                yield path, value


NO_CHANGES = Changes()


def _parsed(setting: str) -> tuple[str, Any]:
    path, equals, value = (part.strip() for part in setting.partition("="))
    if not equals or not path:
        raise BadRecipe(f"change {setting!r}", "no '='", "path.to.field=value", "add the value")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadRecipe(
            f"change {setting!r}", " ".join(str(error).split()), "a value as in YAML", "correct it"
        ) from None


def _set_field(recipe: dict[str, Any], path: str, value: Any, where: str) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        recipe = recipe.setdefault(parent, {})
        if not isinstance(recipe, dict):
            raise BadRecipe(
                f"change {where!r}",
                f"that '{parent}' is a value",
                "a group of fields",
                "`burnish check RECIPE` shows all fields",
            )
    recipe[last] = value
