"""Examine the base model before anything is spent on it: its modules, its limits, its tokenizer."""

from __future__ import annotations

from tasks.cache import Room, step
from tasks.contracts.artifact import Inspected, Source
from tasks.contracts.base import Contract
from tasks.contracts.training import Task
from tasks.data.sources import fetch_folder
from tasks.process import run_program
from tasks.store import open_store


class ExamineInputs(Contract):
    """What the examination reads.

    Attributes:
        model: The base model.
        labels: Of a classification; else empty.
        task: What it is to be trained for.
        chat_template: `chatml`, a template in Jinja, or empty for the tokenizer's own.
    """

    model: Source
    labels: tuple[str, ...]
    task: Task = "text-classification"
    chat_template: str = ""


@step(
    "examine",
    result=Inspected,
    code=("tasks.examine", "tasks.programs.inspect_model"),
    libraries=("torch", "transformers", "tokenizers", "safetensors", "jinja2"),
)
def examine(inputs: ExamineInputs, room: Room) -> Inspected:
    """Find what an adapter may target, how long a text may be, and save the tokenizer that will
    train and ship.

    Raises:
        BadModel: No config, no tokenizer, pickled or quantised weights only, code of its own to
            run, or no chat template where one is needed.
        BadRecipe: The recipe's chat template cannot be used.
    """
    store = open_store(room.store)
    with store.scratch() as scratch:
        tokenizer = scratch / "tokenizer"
        facts = run_program(
            "tasks.programs.inspect_model",
            {
                "base": str(fetch_folder(inputs.model, scratch / "base")),
                "tokenizer_out": str(tokenizer),
                "labels": list(inputs.labels),
                "task": inputs.task,
                "chat_template": inputs.chat_template,
            },
            scratch=scratch,
        )
        return Inspected(artifact=store.put("tokenizer", tokenizer), **facts)
