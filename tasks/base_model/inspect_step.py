"""Examine the base model before anything is spent on it: its modules, its limits, its tokenizer."""

from __future__ import annotations

from tasks.contracts.artifacts import Source
from tasks.contracts.base import Contract
from tasks.contracts.jobs import InspectJob, InspectResult
from tasks.contracts.recipe_data import Task
from tasks.contracts.results import Inspected
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.run_program import run_program
from tasks.storage.sources import fetch_folder
from tasks.storage.store import open_store


class InspectInputs(Contract):
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
    "inspect",
    result=Inspected,
    code=("tasks.base_model.inspect_step", "tasks.base_model.inspect_program"),
    libraries=("torch", "transformers", "tokenizers", "safetensors", "jinja2"),
)
def inspect_model(inputs: InspectInputs, context: RunContext) -> Inspected:
    """Find what an adapter may target, how long a text may be, and save the tokenizer that will
    train and ship.

    Raises:
        BadModel: No config, no tokenizer, pickled or quantised weights only, code of its own to
            run, or no chat template where one is needed.
        BadRecipe: The recipe's chat template cannot be used.
    """
    store = open_store(context.store)
    with store.scratch() as scratch:
        tokenizer = scratch / "tokenizer"
        job = InspectJob(
            base=fetch_folder(inputs.model, scratch / "base"),
            task=inputs.task,
            labels=inputs.labels,
            chat_template=inputs.chat_template,
            tokenizer_out=tokenizer,
        )
        found = run_program("tasks.base_model.inspect_program", job, InspectResult, scratch=scratch)
        return Inspected(artifact=store.put("tokenizer", tokenizer), **dict(found))
