"""Loads the guard set before training: data on which the model must not get worse.

All rows are test examples. The load step reads them for each possible task until one fits: plain
texts are completed, and rows with an answer are answered.
"""

from __future__ import annotations

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.candidate import GuardSet
from tasks.contracts.errors import BadData, BadRecipe, BurnishError, DamagedArtifact
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_evaluation import GuardRecipe
from tasks.contracts.task_tables import ROW_FORMATS
from tasks.load.step import LoadInputs, load
from tasks.runtime.context import RunContext
from tasks.storage.sources import resolve
from tasks.storage.store import open_store

WHERE = "evaluation.guard"


class GuardInputs(Contract):
    """The data on which the model must not get worse.

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
        guard_set = _load(inputs, context)
    except DamagedArtifact:
        raise
    except BurnishError as error:
        raise _name_guard_set(error) from None
    _check_chat(guard_set, inputs.tokenizer, context)
    return guard_set


def _load(inputs: GuardInputs, context: RunContext) -> GuardSet:
    guard = inputs.guard
    source = resolve(guard.uri, "data")
    problems: list[BurnishError] = []
    for task in _possible_tasks(guard, inputs.task):
        load_inputs = LoadInputs(data=guard.data, source=source, task=task, all_test=True)
        try:
            return GuardSet(loaded=load.once(load_inputs, context), task=task, source=source)
        except (BadData, BadRecipe) as error:
            problems.append(error)
    raise problems[0]


def _possible_tasks(guard: GuardRecipe, trained_for: Task) -> list[Task]:
    """Return the tasks that its rows may be for, the model's own task first."""
    tasks: list[Task] = ["instruction", "completion"]
    if trained_for == "completion":
        tasks.reverse()
    accepted = guard.row_format
    return [task for task in tasks if accepted == "auto" or accepted in ROW_FORMATS[task]]


def _check_chat(guard_set: GuardSet, tokenizer: Artifact, context: RunContext) -> None:
    if guard_set.task == "completion":
        return
    folder = open_store(context.store).open(tokenizer)
    config = folder / "tokenizer_config.json"
    if (folder / "chat_template.jinja").exists() or (
        config.exists() and '"chat_template"' in config.read_text()
    ):
        return
    raise BadRecipe(
        WHERE,
        "answers in a chat, but a tokenizer without a chat template",
        "a chat model, or plain texts",
        "set model.chat_template (chatml); or set evaluation.guard.row_format to text or, if the "
        "recipe's task is completion, to prompt-completion",
    )


def _name_guard_set(error: BurnishError) -> BurnishError:
    """Return the error with the recipe fields of the guard set in place of `data`."""
    parts = (error.where, error.found, error.expected, error.fix)
    where, *others = (part.replace("data.", f"{WHERE}.") for part in parts)
    return type(error)(where if WHERE in where else f"{WHERE}, {where}", *others)
