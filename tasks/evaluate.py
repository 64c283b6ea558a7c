"""Evaluate: score one model on the test examples, one by one, from the very files that ship.

Candidate and baseline are scored by the same step, so a baseline that was scored on these examples
before is not scored again.
"""

from __future__ import annotations

import platform
from typing import Literal

from tasks.cache import Room, step
from tasks.contracts.artifact import Artifact, Scored, Source
from tasks.contracts.base import Contract, digest_of
from tasks.data.examples import TEST, write_examples
from tasks.data.sources import fetch_folder
from tasks.process import run_program
from tasks.store import open_store


class ScoreInputs(Contract):
    """Which model, and on what.

    Attributes:
        kind: `merged`: the model stands alone. `adapter`: it is loaded on `base`. `untrained`:
            `base` with a new head, as a first candidate's yardstick.
        model: What ships; None for `untrained`.
        base: The base model, where it is needed.
        tokenizer, max_length: Of an untrained model, which has none of its own that ships: the
            candidate's, and where the candidate's texts are cut.
        quantization: Of the base, for `adapter`.
        labels: Of an untrained head.
        seed: Of an untrained head.
        test_digest: The test set's identity.
        dataset: Where its texts are.
        device: `cpu` or `cuda`, whose sums differ in the last digits.
        hardware: The kind of processor, where latency is measured: timings belong to it.
        batch_size: Examples scored at once.
    """

    not_in_key = frozenset({"dataset", "batch_size"})

    kind: Literal["merged", "adapter", "untrained"]
    model: Artifact | None
    base: Source | None
    tokenizer: Artifact | None = None
    max_length: int | None = None
    quantization: str
    labels: tuple[str, ...]
    seed: int
    test_digest: str
    dataset: Artifact
    hardware: str
    batch_size: int
    device: str


@step(
    "evaluate",
    result=Scored,
    code=("tasks.evaluate", "tasks.programs.score"),
    libraries=("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "scikit-learn"),
)
def score(inputs: ScoreInputs, room: Room) -> Scored:
    """Score a model in a fresh process, loaded as a consumer loads it.

    Raises:
        BadModel: The files cannot be loaded, or answer with something that is not a number.
    """
    import pyarrow.parquet as pq

    from tasks.judging.judge import metrics_of

    store = open_store(room.store)
    with store.scratch() as scratch:
        out = scratch / "scores"
        out.mkdir()
        base = fetch_folder(inputs.base, scratch / "base") if inputs.base else None
        model = store.open(inputs.model) if inputs.model else base
        result = run_program(
            "tasks.programs.score",
            {
                "model": str(model),
                "base": str(base) if base else None,
                "kind": inputs.kind,
                "tokenizer": str(store.open(inputs.tokenizer)) if inputs.tokenizer else None,
                "max_length": inputs.max_length,
                "device": inputs.device,
                "quantization": inputs.quantization,
                "labels": list(inputs.labels),
                "seed": inputs.seed,
                "examples": str(
                    write_examples(room, inputs.dataset, TEST, scratch / "test.parquet")
                ),
                "batch_size": inputs.batch_size,
                "measure_latency": bool(inputs.hardware),
                "out": str(out / "scores.parquet"),
            },
            scratch=scratch,
        )
        metrics = metrics_of(pq.read_table(out / "scores.parquet"))
        return Scored(
            artifact=store.put("scores", out),
            model_digest=model_digest(inputs),
            labels=tuple(result["labels"]),
            metrics=metrics,
            size_bytes=result["size_bytes"],
            milliseconds_per_example=result["milliseconds_per_example"],
        )


def model_digest(inputs: ScoreInputs) -> str:
    """What names the scored model: its artifact's digest, or the base and seed of an untrained
    one."""
    if inputs.model is not None:
        return inputs.model.digest
    return digest_of(["untrained", inputs.base.digest, list(inputs.labels), inputs.seed])


def hardware_kind() -> str:
    """The kind of processor that timings are for."""
    return f"{platform.machine()} {platform.processor()}".strip()
