"""Unpack: an ordinary model of a base that is one GGUF file, made once and kept."""

from __future__ import annotations

from pathlib import Path

from tasks.cache import Room, step
from tasks.contracts.artifact import Artifact, Source, SourceFile, Unpacked
from tasks.contracts.base import Contract
from tasks.data.remote import list_s3
from tasks.data.sources import fetch_folder
from tasks.process import run_program
from tasks.store import Store, open_store


class UnpackInputs(Contract):
    """The GGUF file, as a source."""

    model: Source


@step(
    "unpack",
    result=Unpacked,
    code=("tasks.unpack", "tasks.programs.unpack_gguf"),
    libraries=("torch", "transformers", "tokenizers", "safetensors", "gguf"),
)
def unpack(inputs: UnpackInputs, room: Room) -> Unpacked:
    """Make a model's folder (safetensors, configuration, tokenizer) of a GGUF file.

    Raises:
        BadModel: The file is damaged, a part of a model, of no language model that can be trained,
            or of an architecture that transformers cannot read from GGUF.
    """
    store = open_store(room.store)
    with store.scratch() as scratch:
        folder = fetch_folder(inputs.model, scratch / "gguf")
        out = scratch / "base"
        facts = run_program(
            "tasks.programs.unpack_gguf",
            {"files": [str(folder / file.path) for file in inputs.model.files], "out": str(out)},
            scratch=scratch,
        )
        return Unpacked(artifact=store.put("base", out), **facts)


def is_gguf(source: Source) -> bool:
    """Whether a model's source must be unpacked before anything can load it."""
    return any(file.path.lower().endswith(".gguf") for file in source.files)


def unpacked(source: Source, room: Room) -> Source:
    """A model's source as all steps can load it: itself, or what its GGUF file is unpacked to.

    Args:
        source: The base model, resolved.
        room: Whose store keeps what is unpacked.

    Raises:
        BadModel: As `unpack`.
    """
    if not is_gguf(source):
        return source
    return as_source(source, unpack(UnpackInputs(model=source), room).artifact, room)


def as_source(source: Source, artifact: Artifact, room: Room) -> Source:
    """What was unpacked, in the place of the GGUF file: under its name and pin, but with the files
    and the digest of the artifact."""
    store = open_store(room.store)
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
