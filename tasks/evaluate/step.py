"""Evaluate: score one model on the test examples, one by one, from the very files that ship.

Candidate and baseline are scored by the same step, so a baseline that was scored on these examples
before is not scored again.
"""

from __future__ import annotations

import platform
from typing import Any, Literal

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.base import Contract, digest_of
from tasks.contracts.jobs import ScoreClassificationJob, ScoreLanguageJob, ScoreResult
from tasks.contracts.recipe_data import Task
from tasks.contracts.results import Scored
from tasks.load.dataset import write_examples
from tasks.load.splits import TEST
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.run_program import run_program
from tasks.storage.sources import fetch_folder
from tasks.storage.store import open_store


class ScoreInputs(Contract):
    """Which model, and on what.

    Attributes:
        kind: `merged`: the model stands alone. `adapter`: it is loaded on `base`. `untrained`:
            `base` with a new head (a language model: `base` itself), as a first candidate's
            yardstick.
        model: What ships; None for `untrained`.
        base: The base model, where it is needed.
        tokenizer, max_length: Of an untrained model, which has none of its own that ships: the
            candidate's, and where the candidate's texts are cut. For language models the length
            is given for both models, that they are asked for the same tokens.
        quantization: Of the base, for `adapter`.
        labels: Of an untrained head.
        seed: Of an untrained head.
        test_digest: The test set's identity.
        dataset: Where its texts are.
        device: `cpu` or `cuda`, whose sums differ in the last digits.
        hardware: The kind of processor, where latency is measured: timings belong to it.
        batch_size: Examples scored at once.
        task: What the model is for.
        generate_tokens: Tokens of an answer that a language model writes; 0: it writes none.
        must_match, must_not_contain, json_schema: What is asked of every answer.
        beta: Of the preference loss.
    """

    cache_key_excludes = frozenset({"dataset", "batch_size"})

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
    task: Task = "text-classification"
    generate_tokens: int = 0
    must_match: str = ""
    must_not_contain: tuple[str, ...] = ()
    json_schema: str = ""
    beta: float = 0.1


@step(
    "evaluate",
    result=Scored,
    code=(
        "tasks.evaluate.step",
        "tasks.evaluate.classification_program",
        "tasks.evaluate.language_program",
    ),
    libraries=(
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "tokenizers",
        "scikit-learn",
        "jsonschema",
    ),
)
def score(inputs: ScoreInputs, context: RunContext) -> Scored:
    """Score a model in a fresh process, loaded as a consumer loads it.

    Raises:
        BadModel: The files cannot be loaded, or answer with something that is not a number.
    """
    import pyarrow.parquet as pq

    from tasks.evaluate.metrics import metrics_of

    store = open_store(context.store)
    with store.scratch() as scratch:
        out = scratch / "scores"
        out.mkdir()
        base = fetch_folder(inputs.base, scratch / "base") if inputs.base else None
        model = store.open(inputs.model) if inputs.model else base
        examples = write_examples(context, inputs.dataset, TEST, scratch / "test.parquet")
        classes = inputs.task == "text-classification"
        shared: dict[str, Any] = {
            "model": model,
            "kind": inputs.kind,
            "base": base,
            "quantization": inputs.quantization,
            "tokenizer": store.open(inputs.tokenizer) if inputs.tokenizer else None,
            "device": inputs.device,
            "max_length": inputs.max_length,
            "examples": examples,
            "batch_size": inputs.batch_size,
            "measure_latency": bool(inputs.hardware),
            "out": out / "scores.parquet",
        }
        program = (
            "tasks.evaluate.classification_program"
            if classes
            else "tasks.evaluate.language_program"
        )
        job = (_classification_job if classes else _language_job)(inputs, shared)
        found = run_program(program, job, ScoreResult, scratch=scratch)
        metrics = metrics_of(pq.read_table(out / "scores.parquet"), inputs.task)
        return Scored(
            artifact=store.put("scores", out),
            model_digest=model_digest(inputs),
            metrics=metrics,
            **dict(found),
        )


def _classification_job(inputs: ScoreInputs, shared: dict[str, Any]) -> ScoreClassificationJob:
    return ScoreClassificationJob(**shared, labels=inputs.labels, seed=inputs.seed)


def _language_job(inputs: ScoreInputs, shared: dict[str, Any]) -> ScoreLanguageJob:
    return ScoreLanguageJob(
        **shared,
        task=inputs.task,
        generate_tokens=inputs.generate_tokens,
        must_match=inputs.must_match,
        must_not_contain=inputs.must_not_contain,
        json_schema=inputs.json_schema,
        beta=inputs.beta,
    )


def model_digest(inputs: ScoreInputs) -> str:
    """What names the scored model: its artifact's digest; of an untrained classifier the base and
    the seed, of an untrained language model the base."""
    if inputs.model is not None:
        return inputs.model.digest
    if inputs.task != "text-classification":
        return digest_of(["untrained", inputs.base.digest])
    return digest_of(["untrained", inputs.base.digest, list(inputs.labels), inputs.seed])


def hardware_kind() -> str:
    """The kind of processor that timings are for."""
    return f"{platform.machine()} {platform.processor()}".strip()
