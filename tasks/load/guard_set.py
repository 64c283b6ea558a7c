"""The guard set: found, read and recognised before anything is trained.

All rows of it judge. It is read by the step that reads the data, once for each task that its rows
could be for, until one fits: texts are completed, whatever has an answer is answered.
"""

from __future__ import annotations

from tasks.contracts.artifacts import Artifact
from tasks.contracts.candidate import GuardSet
from tasks.contracts.errors import BadData, BadRecipe, BurnishError, DamagedArtifact
from tasks.contracts.recipe import Recipe
from tasks.contracts.recipe_data import ROW_FORMATS, Task
from tasks.load.step import LoadInputs, load
from tasks.runtime.context import RunContext
from tasks.storage.sources import resolve
from tasks.storage.store import open_store

WHERE = "evaluation.guard"


def load_guard(recipe: Recipe, tokenizer: Artifact, context: RunContext) -> GuardSet | None:
    """Read the recipe's guard set; None where it names none.

    Args:
        recipe: With `evaluation.guard`.
        tokenizer: The candidate's, which must have a chat template where texts are answers.
        context: Where to work.

    Raises:
        BadData: No task fits its rows.
        BadRecipe: Its rows are answers, and the tokenizer knows no chat.
        NotFound, NoAccess, HubFailed, StorageFailed: It cannot be fetched.
    """
    if not recipe.evaluation.guard.uri:
        return None
    try:
        found = _load(recipe, context)
    except DamagedArtifact:
        raise
    except BurnishError as error:
        raise _about_guard(error) from None
    _check_chat(found, tokenizer, context)
    return found


def _load(recipe: Recipe, context: RunContext) -> GuardSet:
    guard = recipe.evaluation.guard
    source = resolve(guard.uri, "data")
    problems: list[BurnishError] = []
    for task in _tasks(recipe):
        inputs = LoadInputs(data=guard.data, source=source, task=task, all_judge=True)
        try:
            return GuardSet(loaded=load.once(inputs, context), task=task, source=source)
        except (BadData, BadRecipe) as error:
            problems.append(error)
    raise problems[0]


def _tasks(recipe: Recipe) -> list[Task]:
    """What its rows may be for; what the recipe trains for comes first."""
    form = recipe.evaluation.guard.row_format
    tasks: list[Task] = ["instruction", "completion"]
    if recipe.task == "completion":
        tasks.reverse()
    return [task for task in tasks if form == "auto" or form in ROW_FORMATS[task]]


def _check_chat(found: GuardSet, tokenizer: Artifact, context: RunContext) -> None:
    if found.task == "completion":
        return
    folder = open_store(context.store).open(tokenizer)
    described = folder / "tokenizer_config.json"
    if (folder / "chat_template.jinja").exists() or (
        described.exists() and '"chat_template"' in described.read_text()
    ):
        return
    raise BadRecipe(
        WHERE,
        "answers in chat, but a tokenizer without a chat template",
        "a chat model, or texts",
        "set model.chat_template (chatml), or evaluation.guard.row_format to text or "
        "prompt-completion "
        "of a recipe for completion",
    )


def _about_guard(error: BurnishError) -> BurnishError:
    """The error in words of the field that names these data."""
    parts = (error.where, error.found, error.expected, error.fix)
    where, *said = (part.replace("data.", f"{WHERE}.") for part in parts)
    return type(error)(where if WHERE in where else f"{WHERE}, {where}", *said)
