"""Inspect the base model before any GPU time is spent: modules, maximum length, tokenizer."""

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
    """What to inspect.

    Attributes:
        model: The base model.
        labels: Labels of a classifier; empty for a language model.
        task: The task that the model will be trained for.
        chat_template: `chatml`, a Jinja template, or empty for the tokenizer's own.
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
    """Find the modules that an adapter may target and the longest input in tokens, and save the
    tokenizer that is used for training and ships with the model.

    Raises:
        BadModel: The model has no configuration, no tokenizer, only pickled or quantized weights,
            needs remote code, or has no chat template although the task needs one.
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
        result = run_program(
            "tasks.base_model.inspect_program", job, InspectResult, scratch=scratch
        )
        return Inspected(artifact=store.put("tokenizer", tokenizer), **dict(result))
