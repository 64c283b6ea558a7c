"""Examine the base model before anything is spent on it: its modules, its limits, its tokenizer."""

from __future__ import annotations

from tasks.cache import Room, step
from tasks.contracts.artifact import Inspected, Source
from tasks.contracts.base import Contract
from tasks.data.sources import fetch_folder
from tasks.process import run_program
from tasks.store import open_store


class ExamineInputs(Contract):
    """What the examination reads."""

    model: Source
    labels: tuple[str, ...]


@step(
    "examine",
    result=Inspected,
    code=("tasks.examine", "tasks.programs.inspect_model"),
    libraries=("torch", "transformers", "tokenizers", "safetensors"),
)
def examine(inputs: ExamineInputs, room: Room) -> Inspected:
    """Find what an adapter may target, how long a text may be, and save the tokenizer that will
    train and ship.

    Raises:
        BadModel: No config, no tokenizer, pickled weights only, or code of its own to run.
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
            },
            scratch=scratch,
        )
        return Inspected(artifact=store.put("tokenizer", tokenizer), **facts)
