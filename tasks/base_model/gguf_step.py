"""Convert a base model that is a GGUF file to a folder of safetensors, once."""

from __future__ import annotations

from pathlib import Path

from tasks.contracts.artifacts import Artifact, Source, SourceFile
from tasks.contracts.base import Contract
from tasks.contracts.jobs import ConvertGgufJob, ConvertGgufResult
from tasks.contracts.results import ConvertedGguf
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.run_program import run_program
from tasks.storage.remote_sources import list_s3
from tasks.storage.sources import fetch_folder
from tasks.storage.store import Store, open_store


class GgufInputs(Contract):
    """The GGUF file, as a source."""

    model: Source


@step(
    "gguf",
    result=ConvertedGguf,
    code=("tasks.base_model.gguf_step", "tasks.base_model.gguf_program"),
    libraries=("torch", "transformers", "tokenizers", "safetensors", "gguf"),
)
def convert_gguf(inputs: GgufInputs, context: RunContext) -> ConvertedGguf:
    """Convert a GGUF file to a folder of safetensors, configuration and tokenizer.

    Raises:
        BadModel: The file is damaged, holds part of a model or no trainable language model, or has
            an architecture that transformers cannot read from GGUF.
    """
    store = open_store(context.store)
    with store.scratch() as scratch:
        folder = fetch_folder(inputs.model, scratch / "gguf")
        out = scratch / "base"
        job = ConvertGgufJob(
            files=tuple(folder / file.path for file in inputs.model.files), out=out
        )
        result = run_program(
            "tasks.base_model.gguf_program", job, ConvertGgufResult, scratch=scratch
        )
        return ConvertedGguf(artifact=store.put("base", out), **dict(result))


def is_gguf(source: Source) -> bool:
    """Whether a base model is a GGUF file, which must be converted before it is loaded."""
    return any(file.path.lower().endswith(".gguf") for file in source.files)


def trainable_source(source: Source, context: RunContext) -> Source:
    """Return the base model in a form that every step can load: converted if it is a GGUF file.

    Args:
        source: The base model, resolved.
        context: The run, whose store gets the converted model.

    Raises:
        BadModel: The GGUF file cannot be converted; see `convert_gguf`.
    """
    if not is_gguf(source):
        return source
    converted = convert_gguf(GgufInputs(model=source), context)
    return converted_source(source, converted.artifact, context)


def converted_source(source: Source, artifact: Artifact, context: RunContext) -> Source:
    """Return a source with the files and the digest of the converted model.

    Args:
        source: The GGUF file; its URI is kept, so that reports and model cards name it.
        artifact: The converted model.
        context: The run, whose store has the artifact.
    """
    store = open_store(context.store)
    locations = _file_locations(store, artifact)
    files = tuple(
        SourceFile(
            path=entry.path,
            size=entry.size,
            digest=entry.sha256,
            location=locations[entry.path],
        )
        for entry in store.manifest(artifact).files
    )
    return source.model_copy(update={"files": files, "digest": artifact.digest})


def _file_locations(store: Store, artifact: Artifact) -> dict[str, str]:
    """Return the location of each file of an artifact, by relative path."""
    root = f"{store.uri}/artifacts/{artifact.kind}/{artifact.digest}/files"
    if root.startswith("s3://"):
        return {file.path: file.location for file in list_s3(root, f"artifact {root}")}
    return {entry.path: str(Path(root, entry.path)) for entry in store.manifest(artifact).files}
