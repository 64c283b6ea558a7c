"""The job and the result of each program: what the two processes exchange, as JSON.

The parent writes a `Job` to a file and gets a `Result` back (`tasks.runtime.run_program`). Changes
to this module do not change any cache key, so nothing here may decide a result: the models have no
defaults and no validators of their own.

Paths are local. A relative one starts from the parent's working folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tasks.contracts.base import Contract
from tasks.contracts.forecast import Remedy
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_data import Task
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe

Quantization = Literal["none", "nf4"]
Ship = Literal["merged", "adapter"]
ModelKind = Literal["merged", "adapter", "untrained"]
GgufType = Literal["f32", "f16", "bf16", "q8_0"]
TooLong = Literal["truncate", "drop", "split"]


class Job(Contract):
    """The base of all jobs."""


class Result(Contract):
    """The base of all results."""


class Done(Result):
    """The result of a program that only writes files, or only checks something."""


# Base model


class InspectJob(Job):
    """Job of `tasks.base_model.inspect_program`."""

    base: Path
    """The base model's folder."""
    task: Task
    labels: tuple[str, ...]
    """Labels of a classification; empty for language models."""
    chat_template: str
    """`chatml`, a Jinja template, or empty for the tokenizer's own."""
    tokenizer_out: Path
    """Folder that the tokenizer is written to."""


class InspectResult(Result):
    """The fields of `tasks.contracts.results.Inspected` that describe the model."""

    architecture: str
    parameters: int
    max_length: int | None
    linear_modules: tuple[str, ...]
    head_modules: tuple[str, ...]
    pad_token: str
    vocabulary: int
    shape: dict[str, int]
    warnings: tuple[str, ...]


class ConvertGgufJob(Job):
    """Job of `tasks.base_model.gguf_program`."""

    files: tuple[Path, ...]
    """One GGUF file, or the parts of a split one."""
    out: Path
    """Folder that the model is written to."""


class ConvertGgufResult(Result):
    """What the GGUF file was converted to."""

    architecture: str
    """Name of the model's class in transformers."""
    dtype: str
    """Of the weights: float32 or bfloat16."""


# Tokenize


class RowShard(Contract):
    """A shard to tokenize."""

    digest: str
    rows: Path
    """The shard's `rows.parquet`."""
    out: Path
    """An empty folder for its tokens."""


class TokenizeClassificationJob(Job):
    """Job of `tasks.tokenize.classification_program`."""

    tokenizer: Path
    max_length: int
    """Tokens."""
    shards: tuple[RowShard, ...]


class TokenizeLanguageJob(Job):
    """Job of `tasks.tokenize.language_program`."""

    tokenizer: Path
    task: Task
    max_length: int
    """Tokens."""
    too_long: TooLong
    """What happens to longer examples."""
    shards: tuple[RowShard, ...]


# Plan


class ForecastJob(Job):
    """Job of `tasks.plan.forecast_program`."""

    base: Path
    """Folder with the base model's configuration."""
    lora: LoraRecipe
    quantization: Quantization
    plan: Plan
    ship: Ship
    checkpointing: Literal["auto", "on", "off"]
    """Whether activations are recomputed; auto: only if memory is short."""
    micro_batch_tokens: int
    """Tokens of a forward pass; 0: as many as fit."""
    max_length: int
    """Most tokens of a sequence."""
    longest_example: int
    """Tokens of the longest example (both sides of a pair together): a micro-batch has at least as
    many."""
    step_tokens: int
    """Tokens of an optimizer step on one device: a micro-batch needs no more."""
    target_share: float
    """Share of the tokens that are training targets."""
    memory: int
    """Bytes that training may use on a device; 0 if unknown."""
    host_memory: int
    """Bytes that merging may use on the machine; 0 if unknown."""
    stored_bytes: int
    """Bytes of a weight in the base model's files, and in the files that ship."""


class ForecastResult(Result):
    """The fields of `tasks.contracts.forecast.Forecast` that the program finds."""

    unknown: str
    """Why nothing could be forecast; then the other fields mean nothing."""
    parts: dict[str, int]
    checkpointing: bool
    micro_batch_tokens: int
    trained_parameters: int
    merge_memory: int
    merge_host_memory: int
    fits: bool
    remedies: tuple[Remedy, ...]


# Fine-tune


class TokenShard(Contract):
    """The tokens of a shard."""

    digest: str
    """The shard's digest, not that of its tokens."""
    tokens: Path
    """A Parquet file."""


class PinnedBase(Contract):
    """The base model as a shipped adapter names it."""

    uri: str
    """With an immutable revision."""
    digest: str


class FinetuneJob(Job):
    """Job of `tasks.finetune.program`.

    The batch of an optimizer step is the same whatever the size of the micro-batches.
    """

    task: Task
    base: Path
    base_pin: PinnedBase
    tokenizer: Path
    shards: tuple[TokenShard, ...]
    keep_file: Path
    """NumPy archive: the split number of each row, by shard digest."""
    labels: tuple[str, ...]
    """In the order of the model's outputs; empty for language models."""
    head_modules: tuple[str, ...]
    """Modules of the new head; empty for language models."""
    lora: LoraRecipe
    quantization: Quantization
    training: TrainingRecipe
    plan: Plan
    ship: Ship
    micro_batch_examples: int
    """Most examples of a classifier's forward pass; 0: those of a step."""
    micro_batch_tokens: int
    """Tokens of a language model's forward pass; 0: as many as fit."""
    max_micro_batch_tokens: int
    """The most that `micro_batch_tokens: 0` may choose, from the forecast; 0: no limit."""
    halvings: int
    """How often micro-batches are halved, since device memory ran out in an earlier process."""
    tight_memory: bool
    """Whether freed memory is returned to the system at once, which is slower."""
    work: Path
    """Folder for checkpoints and temporary files."""
    resume_from: Path | None
    """The checkpoint to resume from. An incomplete one is ignored."""
    stop_seconds: float
    """How long a request to stop leaves for saving a checkpoint."""
    out: Path
    """Folder for the files that ship."""
    check_out: Path
    """File for the validation examples of `FinetuneResult.check_loss`."""


class FinetuneResult(Result):
    """The fields of `tasks.contracts.results.Finetuned` that the program finds."""

    metrics: dict[str, float]
    check_loss: float
    history: tuple[dict[str, float], ...]
    best_epoch: float
    steps: int
    trained_parameters: int
    warnings: tuple[str, ...]


class CheckGgufJob(Job):
    """Job of `tasks.finetune.gguf_check_program`."""

    converter: Path
    """llama.cpp's conversion script; see `tasks.runtime.gguf_converter`."""
    file_type: GgufType
    base: Path
    tokenizer: Path
    work: Path
    """Folder for temporary files."""


class ExportGgufJob(Job):
    """Job of `tasks.finetune.gguf_export_program`."""

    converter: Path
    """llama.cpp's conversion script; see `tasks.runtime.gguf_converter`."""
    file_type: GgufType
    model: Path
    """Folder with configuration, tokenizer and safetensors."""
    work: Path
    """Folder for temporary files."""
    out: Path
    """Folder for the GGUF file and Ollama's `Modelfile`."""


class ExportGgufResult(Result):
    """The file that was written."""

    file: str
    """Its name."""
    bytes: int


# Evaluate


class ModelJob(Job):
    """A job that loads a model the way a consumer does."""

    model: Path
    """Folder of the files that ship; for `untrained`, of the base model."""
    kind: ModelKind
    base: Path | None
    """The base model of an `adapter`."""
    quantization: Quantization
    """Of that base model."""
    tokenizer: Path | None
    """None: the model's own."""
    device: Literal["cpu", "cuda"]


class LossCheckJob(Contract):
    """What shows that the files that ship are the model that was trained."""

    examples: Path
    """Parquet file; see `tasks.training.loss_check`."""
    loss: float
    """Of the best epoch on them, as training computed it."""


class ScoreJob(ModelJob):
    """What scoring has in common for all tasks."""

    max_length: int | None
    """Tokens of an example; None: as the tokenizer says."""
    examples: Path
    """Parquet file."""
    batch_size: int
    measure_latency: bool
    check: LossCheckJob | None
    """Only of a candidate: it is also tried as a consumer uses it."""
    out: Path
    """Path of `scores.parquet`."""


class ScoreClassificationJob(ScoreJob):
    """Job of `tasks.evaluate.classification_program`."""

    labels: tuple[str, ...]
    """Of an untrained head."""
    seed: int
    """Of an untrained head."""


class ScoreLanguageJob(ScoreJob):
    """Job of `tasks.evaluate.language_program`."""

    task: Task
    generate_tokens: int
    """Most tokens of a generated answer; 0: none is generated."""
    must_match: str
    must_not_contain: tuple[str, ...]
    json_schema: str
    beta: float
    """Of the preference loss."""


class ScoreResult(Result):
    """What scoring finds besides the table of scores."""

    labels: tuple[str, ...]
    """The model's labels; empty for language models."""
    size_bytes: int
    """Of the model's folder."""
    milliseconds_per_example: float | None
    """Median latency; None if it was not measured."""


class BenchmarkJob(ModelJob):
    """Job of `tasks.evaluate.benchmark_program`."""

    tasks: tuple[str, ...]
    folder: Path | None
    """With task files (YAML) of the user's own."""
    limit: int
    """Examples of each task; 0: all."""
    chat: bool
    """Whether the chat template is applied to prompts."""
    batch_size: int


class BenchmarkResult(Result):
    """The fields of `tasks.contracts.results.Benchmarked` that the program finds."""

    results: dict[str, dict[str, float]]
    examples: dict[str, int]


class CheckBenchmarksJob(Job):
    """Job of `tasks.evaluate.benchmark_check_program`."""

    tasks: tuple[str, ...]
    folder: Path | None
    """With task files (YAML) of the user's own."""
