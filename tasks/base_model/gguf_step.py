"""Unpack: an ordinary model of a base that is one GGUF file, made once and kept."""

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
    """Make a model's folder (safetensors, configuration, tokenizer) of a GGUF file.

    Raises:
        BadModel: The file is damaged, a part of a model, of no language model that can be trained,
            or of an architecture that transformers cannot read from GGUF.
    """
    store = open_store(context.store)
    with store.scratch() as scratch:
        folder = fetch_folder(inputs.model, scratch / "gguf")
        out = scratch / "base"
        job = ConvertGgufJob(
            files=tuple(folder / file.path for file in inputs.model.files), out=out
        )
        found = run_program(
            "tasks.base_model.gguf_program", job, ConvertGgufResult, scratch=scratch
        )
        return ConvertedGguf(artifact=store.put("base", out), **dict(found))


def is_gguf(source: Source) -> bool:
    """Whether a model's source must be unpacked before anything can load it."""
    return any(file.path.lower().endswith(".gguf") for file in source.files)


def trainable_source(source: Source, context: RunContext) -> Source:
    """A model's source as all steps can load it: itself, or what its GGUF file is unpacked to.

    Args:
        source: The base model, resolved.
        context: Whose store keeps what is unpacked.

    Raises:
        BadModel: As `convert_gguf`.
    """
    if not is_gguf(source):
        return source
    return as_source(source, convert_gguf(GgufInputs(model=source), context).artifact, context)


def as_source(source: Source, artifact: Artifact, context: RunContext) -> Source:
    """What was unpacked, in the place of the GGUF file: under its name and pin, but with the files
    and the digest of the artifact."""
    store = open_store(context.store)
    places = _places(store, artifact)
    files = tuple(
        SourceFile(
            path=entry.path, size=entry.size, digest=entry.sha256, location=places[entry.path]
        )
        for entry in store.manifest(artifact).files
    )
    return source.model_copy(update={"files": files, "digest": artifact.digest})


def _places(store: Store, artifact: Artifact) -> dict[str, str]:
    """Where each of the artifact's files is read from."""
    root = f"{store.uri}/artifacts/{artifact.kind}/{artifact.digest}/files"
    if root.startswith("s3://"):
        return {file.path: file.location for file in list_s3(root, f"artifact {root}")}
    return {entry.path: str(Path(root, entry.path)) for entry in store.manifest(artifact).files}
