"""Export a trained model to GGUF, for llama.cpp and Ollama.

This is a separate step whose input is the trained model: another file type or converter exports
again without training again.
"""

from __future__ import annotations

from pydantic import Field

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.base import Contract
from tasks.contracts.jobs import CheckGgufJob, Done, ExportGgufJob, ExportGgufResult, GgufType
from tasks.contracts.results import GgufExported
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.gguf_converter import converter_digest, find_converter
from tasks.runtime.run_program import run_program
from tasks.storage.sources import fetch_folder
from tasks.storage.store import open_store


class GgufExportInputs(Contract):
    """Everything that decides the GGUF file.

    Attributes:
        model: The trained model, merged.
        file_type: The type of the file's weights.
        converter: The converter's digest.
    """

    model: Artifact
    file_type: GgufType
    converter: str = Field(default_factory=converter_digest)


@step(
    "gguf-export",
    result=GgufExported,
    code=("tasks.finetune.gguf_export_step", "tasks.finetune.gguf_export_program"),
    libraries=("torch", "transformers", "tokenizers", "safetensors", "numpy"),
)
def export_gguf(inputs: GgufExportInputs, context: RunContext) -> GgufExported:
    """Export the model to one GGUF file, with a `Modelfile` for Ollama.

    Raises:
        BadModel: The converter does not know the architecture or the tokenizer.
        BadRecipe: No converter is installed, or it lacks a module.
    """
    store = open_store(context.store)
    with store.scratch() as scratch:
        out = scratch / "gguf"
        out.mkdir()
        job = ExportGgufJob(
            converter=find_converter(),
            file_type=inputs.file_type,
            model=store.open(inputs.model),
            work=scratch,
            out=out,
        )
        result = run_program(
            "tasks.finetune.gguf_export_program", job, ExportGgufResult, scratch=scratch
        )
        return GgufExported(artifact=store.put("gguf", out), file=result.file)


def check_gguf_export(
    base: Source, tokenizer: Artifact, file_type: GgufType, context: RunContext
) -> None:
    """Check, before training, that a model trained on this base can be exported.

    Args:
        base: The base model.
        tokenizer: The tokenizer that ships with the model.
        file_type: The type of the file's weights.
        context: The run.

    Raises:
        BadModel: The converter does not know the architecture or the tokenizer.
        BadRecipe: No converter is installed, or it lacks a module.
    """
    store = open_store(context.store)
    with store.scratch() as scratch:
        job = CheckGgufJob(
            converter=find_converter(),
            file_type=file_type,
            base=fetch_folder(base, scratch / "base"),
            tokenizer=store.open(tokenizer),
            work=scratch,
        )
        run_program("tasks.finetune.gguf_check_program", job, Done, scratch=scratch)
