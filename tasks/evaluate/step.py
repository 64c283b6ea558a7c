"""The evaluate step: score one model on each test example, loaded from its released files.

Candidate and baseline are scored by the same step, so a baseline is not scored twice on the same
examples.
"""

from __future__ import annotations

from typing import Any, Literal

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.base import Contract, digest_of
from tasks.contracts.jobs import (
    LossCheckJob,
    ScoreClassificationJob,
    ScoreLanguageJob,
    ScoreResult,
)
from tasks.contracts.recipe_data import Task
from tasks.contracts.results import Scored
from tasks.load.dataset import write_examples
from tasks.load.splits import TEST
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.run_program import run_program
from tasks.storage.sources import fetch_folder
from tasks.storage.store import Store, open_store


class ScoreInputs(Contract):
    """The model to score, and the examples to score it on.

    Attributes:
        kind: `merged`: a complete model. `adapter`: an adapter that is loaded on `base`.
            `untrained`: `base` with a new head (for language models `base` itself), the baseline of
            a first candidate.
        model: The released artifact; None for `untrained`.
        base: The base model; None if it is not needed.
        tokenizer, max_length: The candidate's, for an untrained model, which has no tokenizer or
            length of its own. Language models both get the length, so that both are scored on the
            same tokens.
        quantization: Of the base, for `adapter`.
        labels: Of an untrained head.
        seed: Of an untrained head.
        test_digest: The test set's identity.
        dataset: The artifact that holds the test set's texts.
        device: `cpu` or `cuda`, whose sums differ in the last digits.
        hardware: The kind of processor if latency is measured, because timings depend on it;
            otherwise empty.
        batch_size: Examples per batch.
        task: The model's task.
        generate_tokens: Maximum tokens of a generated answer; 0: no answers are generated.
        must_match, must_not_contain, json_schema: Checks on every generated answer.
        beta: Of the preference loss.
        check, check_loss: Of a candidate, from `Finetuned`; None for a model that was released. A
            check changes no score.
    """

    cache_key_excludes = frozenset({"dataset", "batch_size", "check", "check_loss"})

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
    check: Artifact | None = None
    check_loss: float = 0.0


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
    on_pool=True,
)
def score(inputs: ScoreInputs, context: RunContext) -> Scored:
    """Score a model in a process of its own, loaded the way a consumer loads it.

    Raises:
        BadModel: The files cannot be loaded, the model's output is not a number, or a candidate is
            not the model that was trained or cannot be used as a consumer does.
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
        classifier = inputs.task == "text-classification"
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
            "check": _check_job(inputs, store),
            "out": out / "scores.parquet",
        }
        program = (
            "tasks.evaluate.classification_program"
            if classifier
            else "tasks.evaluate.language_program"
        )
        job = (_classification_job if classifier else _language_job)(inputs, shared)
        found = run_program(program, job, ScoreResult, scratch=scratch)
        metrics = metrics_of(pq.read_table(out / "scores.parquet"), inputs.task)
        return Scored(
            artifact=store.put("scores", out),
            model_digest=model_digest(inputs),
            metrics=metrics,
            **dict(found),
        )


def _check_job(inputs: ScoreInputs, store: Store) -> LossCheckJob | None:
    if inputs.check is None:
        return None
    examples = store.file(inputs.check, "examples.parquet")
    return LossCheckJob(examples=examples, loss=inputs.check_loss)


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
    """The digest that identifies the scored model.

    It is the artifact's digest, or for an untrained model a digest of its base, and of the labels
    and the seed of a classifier's head.
    """
    if inputs.model is not None:
        return inputs.model.digest
    if inputs.task != "text-classification":
        return digest_of(["untrained", inputs.base.digest])
    return digest_of(["untrained", inputs.base.digest, list(inputs.labels), inputs.seed])
