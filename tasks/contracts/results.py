"""The results of the steps: one class per step."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract


class Provenance(Contract):
    """Which run computed a result, when, and with which code. Never part of a cache key."""

    run_id: str
    run_name: str
    at: str
    """UTC, ISO 8601."""
    seconds: float
    libraries: dict[str, str]
    code: str
    """Digest of the step's code."""


class StepResult(Contract):
    """What every step returns: an artifact, its cache key, its provenance, and a few facts."""

    cache_key_excludes: ClassVar[frozenset[str]] = frozenset({"key", "provenance"})

    schema_version: int = 1
    artifact: Artifact
    key: str = ""
    provenance: Provenance | None = None


class Loaded(StepResult):
    """The data, cut into shards and split. The artifact (kind `dataset`) holds:

    `dataset.json`: the shards in reading order, each with its artifact and row counts;
    `keep.npz`: for each shard digest, a uint8 per row: 0 dropped (duplicate), 1 train,
    2 validation, 3 test; `seen.npy`: sorted uint64 pairs, shape (n, 2): the hashes of the inputs of
    train and validation; `report.json`: the data report.
    """

    labels: tuple[str, ...]
    rows: dict[str, int]
    """Rows by split, without duplicates."""
    test_digest: str
    """Identifies the set of test examples (inputs and labels), whatever their order."""
    new_shards: int
    """Shards that the run which computed this had to read."""
    shards: int
    warnings: tuple[str, ...] = ()


class ConvertedGguf(StepResult):
    """A base model converted from a GGUF file. The artifact (kind `base`) is a model folder."""

    architecture: str
    dtype: str
    """Of its weights: float32 or bfloat16."""


class Inspected(StepResult):
    """What must be known about a base model before it is trained.

    The artifact (kind `tokenizer`) holds the tokenizer as it will train and ship.
    """

    architecture: str
    parameters: int
    max_length: int | None
    """Tokens; None if the model has no limit."""
    linear_modules: tuple[str, ...]
    """Full names of the modules that an adapter may target, without the head."""
    head_modules: tuple[str, ...]
    """Names of the modules of the new head, which are trained in full."""
    pad_token: str
    """Empty if the tokenizer has none that a language model could use."""
    vocabulary: int
    shape: dict[str, int] = Field(default_factory=dict)
    """Sizes that memory depends on; see `tasks.base_model.inspect_program`."""
    warnings: tuple[str, ...] = ()


class Tokenized(StepResult):
    """Token ids, shard by shard. The artifact (kind `tokens`) holds `tokens.json`: for each
    shard digest the artifact of its tokens."""

    shards: int
    new_shards: int
    tokens: int
    """Real tokens (no padding) in the rows that are kept."""
    truncated: int
    """Rows that were truncated to the maximum length."""
    longest: int
    """Tokens in the longest row before truncation."""
    target_tokens: int = 0
    """Tokens of the loss, in the rows that are kept (language models)."""
    left_out: int = 0
    """Rows that were left out because they are too long (language models)."""
    warnings: tuple[str, ...] = ()


class Finetuned(StepResult):
    """A trained model. The artifact (kind `model`) holds the files that ship."""

    metrics: dict[str, float]
    """On the validation split, of the best epoch."""
    check: Artifact | None = None
    """Artifact (kind `loss-check`) with `examples.parquet`: a few validation examples."""
    check_loss: float = 0.0
    """Of the best epoch on them."""
    history: tuple[dict[str, float], ...]
    """One entry per logged step or epoch, for the loss curve."""
    best_epoch: float
    steps: int
    trained_parameters: int
    warnings: tuple[str, ...] = ()
    tokens_per_second: float = 0.0
    """Tokens without padding, as last reported; 0 if not reported. Depends on the machine."""
    resumed: str = ""
    """Which checkpoint the training went on from, in words; empty if from none."""


class GgufChecked(StepResult):
    """That a model can be exported to GGUF. The artifact (kind `gguf-check`) holds what was
    checked, as `checked.json`."""


class GgufExported(StepResult):
    """A trained model as GGUF. The artifact (kind `gguf`) holds `model-<type>.gguf` and a
    `Modelfile` for Ollama."""

    file: str
    """Name of the GGUF file."""


class Scored(StepResult):
    """One model's results on the test split. The artifact (kind `scores`) holds
    `scores.parquet`, one row per example, in the order of the examples' hashes: `hash_hi`,
    `hash_lo` (uint64), `label`, `predicted` (strings), `correct` (bool), `loss` (float64, natural
    logarithm), `length` (int32, tokens), and a string column for each slicing column, and for
    `data.split.group_by` (`split_group`). Of a language model: one row per input, with the columns
    that `tasks.evaluate.language_program` describes."""

    model_digest: str
    labels: tuple[str, ...]
    """The labels that the model can predict."""
    metrics: dict[str, float]
    size_bytes: int
    milliseconds_per_example: float | None = None
    """Only measured if the gate has a latency budget. Per token for generated answers."""


class Comparisons(StepResult):
    """Which answers the LLM judge preferred. The artifact (kind `comparisons`) holds
    `comparisons.parquet`, one row per pair: `hash_hi`, `hash_lo` (uint64), `candidate`, `baseline`
    (the answers), `preferred` (1: the candidate's, 0: the baseline's, 0.5: neither), and for each
    of both orders `first_verdict`, `first_reply`, `second_verdict`, `second_reply`."""

    llm_judge: str
    """Name of the LLM judge."""
    preferred: float
    """Mean over the pairs."""
    wins: int
    ties: int
    losses: int
    inconsistent: int
    """Ties because the judge chose the same position in both orders."""
    unreadable: int
    """Ties because the judge gave no verdict."""


class Benchmarked(StepResult):
    """One model's results on tasks of lm-evaluation-harness. The artifact (kind `benchmarks`) holds
    them as `results.json`."""

    results: dict[str, dict[str, float]]
    """Metrics by task."""
    examples: dict[str, int]
    """Number of examples by task."""
