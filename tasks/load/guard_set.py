"""The guard set: found, read and recognised before anything is trained.

All rows of it judge. It is read by the step that reads the data, once for each task that its rows
could be for, until one fits: texts are completed, whatever has an answer is answered.
"""

from __future__ import annotations

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.candidate import GuardSet
from tasks.contracts.errors import BadData, BadRecipe, BurnishError, DamagedArtifact
from tasks.contracts.recipe_data import ROW_FORMATS, Task
from tasks.contracts.recipe_evaluation import GuardRecipe
from tasks.load.step import LoadInputs, load
from tasks.runtime.context import RunContext
from tasks.storage.sources import resolve
from tasks.storage.store import open_store

WHERE = "evaluation.guard"


class GuardInputs(Contract):
    """Which texts the model must not forget.

    Attributes:
        guard: The recipe's `evaluation.guard`.
        task: What the model is trained for.
        tokenizer: The candidate's, which must have a chat template if the texts are answers.
    """

    guard: GuardRecipe
    task: Task
    tokenizer: Artifact


def load_guard(inputs: GuardInputs, context: RunContext) -> GuardSet:
    """Read a guard set.

    Raises:
        BadData: No task fits its rows.
        BadRecipe: Its rows are answers, and the tokenizer has no chat template.
        NotFound, NoAccess, HubFailed, StorageFailed: It cannot be fetched.
    """
    try:
        found = _load(inputs, context)
    except DamagedArtifact:
        raise
    except BurnishError as error:
        raise _about_guard(error) from None
    _check_chat(found, inputs.tokenizer, context)
    return found


def _load(inputs: GuardInputs, context: RunContext) -> GuardSet:
    guard = inputs.guard
    source = resolve(guard.uri, "data")
    problems: list[BurnishError] = []
    for task in _possible_tasks(guard, inputs.task):
        load_inputs = LoadInputs(data=guard.data, source=source, task=task, all_judge=True)
        try:
            return GuardSet(loaded=load.once(load_inputs, context), task=task, source=source)
        except (BadData, BadRecipe) as error:
            problems.append(error)
    raise problems[0]


def _possible_tasks(guard: GuardRecipe, trained_for: Task) -> list[Task]:
    """What its rows may be for, the task that the model is trained for first."""
    tasks: list[Task] = ["instruction", "completion"]
    if trained_for == "completion":
        tasks.reverse()
    form = guard.row_format
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
