"""Export a trained model to GGUF, for llama.cpp and Ollama.

This is a separate step whose input is the trained model: another file type or converter exports
again without training again.
"""

from __future__ import annotations

import orjson

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.base import Contract
from tasks.contracts.jobs import CheckGgufJob, Done, ExportGgufJob, ExportGgufResult, GgufType
from tasks.contracts.results import GgufChecked, GgufExported
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.gguf_converter import find_converter
from tasks.runtime.run_program import run_program
from tasks.storage.sources import fetch_folder
from tasks.storage.store import open_store


class GgufExportInputs(Contract):
    """Everything that decides the GGUF file.

    Attributes:
        model: The trained model, merged.
        file_type: The type of the file's weights.
        converter: The digest of the converter where it runs.
    """

    model: Artifact
    file_type: GgufType
    converter: str


class GgufCheckInputs(Contract):
    """What decides whether a model can be exported.

    Attributes:
        base: The base model.
        tokenizer: The tokenizer that ships with the model.
        file_type: The type of the file's weights.
        converter: The digest of the converter where it runs.
    """

    base: Source
    tokenizer: Artifact
    file_type: GgufType
    converter: str


@step(
    "gguf-export",
    result=GgufExported,
    code=("tasks.finetune.gguf_export_step", "tasks.finetune.gguf_export_program"),
    libraries=("torch", "transformers", "tokenizers", "safetensors", "numpy"),
    on_pool=True,
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


@step(
    "gguf-check",
    result=GgufChecked,
    code=("tasks.finetune.gguf_export_step", "tasks.finetune.gguf_check_program"),
    libraries=("torch", "transformers", "tokenizers", "safetensors"),
    on_pool=True,
)
def check_gguf_export(inputs: GgufCheckInputs, context: RunContext) -> GgufChecked:
    """Check, before training, that a model trained on this base can be exported.

    Raises:
        BadModel: The converter does not know the architecture or the tokenizer.
        BadRecipe: No converter is installed, or it lacks a module.
    """
    store = open_store(context.store)
    with store.scratch() as scratch:
        job = CheckGgufJob(
            converter=find_converter(),
            file_type=inputs.file_type,
            base=fetch_folder(inputs.base, scratch / "base"),
            tokenizer=store.open(inputs.tokenizer),
            work=scratch,
        )
        run_program("tasks.finetune.gguf_check_program", job, Done, scratch=scratch)
        out = scratch / "checked"
        out.mkdir()
        (out / "checked.json").write_bytes(orjson.dumps(inputs.key_part()))
        return GgufChecked(artifact=store.put("gguf-check", out))
