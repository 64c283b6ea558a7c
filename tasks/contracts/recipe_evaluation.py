"""What a recipe says of how a candidate is scored, and what the gate holds it to."""

from __future__ import annotations

import json
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from tasks.contracts.base import Contract
from tasks.contracts.recipe_data import DataRecipe

Metric = Literal[
    "accuracy",
    "precision",
    "recall",
    "f1",
    "loss",
    "perplexity",
    "exact_match",
    "token_f1",
    "rouge_l",
    "checks",
    "preferred",
]
_OF_TEXTS: tuple[Metric, ...] = ("loss", "perplexity")
_OF_ANSWERS: tuple[Metric, ...] = ("exact_match", "token_f1", "rouge_l", "checks", "preferred")
METRICS: dict[str, tuple[Metric, ...]] = {
    "text-classification": ("accuracy", "precision", "recall", "f1"),
    "completion": (*_OF_TEXTS, *_OF_ANSWERS),
    "instruction": (*_OF_TEXTS, *_OF_ANSWERS),
    "preference": ("accuracy", "loss"),
}
"""What the gate can hold a task's candidate to; the first is what `auto` means."""
GENERATED = _OF_ANSWERS
"""Metrics of what a language model writes: they need `evaluation.generate_tokens`."""
LOWER_IS_BETTER = ("loss", "perplexity")


class GuardRecipe(Contract):
    """Texts that a language model must not forget while it learns others."""

    cache_key_excludes = frozenset({"uri"})

    uri: str | tuple[str, ...] = Field(
        "",
        title="Source",
        description="As data.uri: a file, folder or glob; s3://bucket/prefix; "
        "hf://owner/name@revision; package:module/path. Every row of it judges. Empty: no guard.",
    )
    format: Literal["auto", "jsonl", "csv", "parquet", "arrow", "text-folders"] = Field(
        "auto", title="Format", description="As data.format."
    )
    row_format: Literal["auto", "text", "prompt-completion", "alpaca", "messages", "sharegpt"] = (
        Field(
            "auto",
            title="Form of a row",
            description="As data.row_format. What is no text is scored as an answer, in chat.",
        )
    )
    columns: dict[str, str] = Field(
        {}, title="Columns by another name", description="As data.columns."
    )

    @property
    def data(self) -> DataRecipe:
        """How the texts are read."""
        return DataRecipe(
            uri=self.uri, format=self.format, row_format=self.row_format, columns=self.columns
        )


class LlmJudgeRecipe(Contract):
    """A language model that says which of two answers is the better one."""

    cache_key_excludes = frozenset({"api_key_env", "time_out_seconds", "parallel"})

    url: str = Field(
        "",
        title="URL",
        description="Base URL of a server that speaks OpenAI's chat completions, such as "
        "http://127.0.0.1:8000/v1. Empty: no judge.",
    )
    model: str = Field("", title="Model", description="The judge's name at that server.")
    prompt: str = Field(
        "",
        title="Prompt",
        description="With {question}, {answer_a}, {answer_b} and, if wanted, {reference}; the "
        "judge must end with [[A]], [[B]] or [[C]] (neither). Empty: a built-in one.",
    )
    api_key_env: str = Field(
        "",
        title="Key's variable",
        description="Name of the environment variable that holds the server's key, never the key "
        "itself. Empty: it needs none.",
    )
    max_examples: int = Field(
        300,
        ge=1,
        le=100_000,
        title="Most examples",
        description="That are judged, each twice: with the answers in either order.",
    )
    time_out_seconds: float = Field(
        120, gt=0, le=3600, title="Time-out (seconds)", description="Of one question to the judge."
    )
    parallel: int = Field(
        4, ge=1, le=256, title="At once", description="Questions that are asked at the same time."
    )

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        # Never said again: what is wrong with it may be a key in it.
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it must begin with http:// or https:// and name a server")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("it must have no user, query or fragment: a key goes by api_key_env")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("it must be the name of an environment variable, not the key itself")
        return value

    @field_validator("prompt")
    @classmethod
    def _whole_prompt(cls, value: str) -> str:
        missing = [part for part in ("{question}", "{answer_a}", "{answer_b}") if part not in value]
        if value and missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return value

    @model_validator(mode="after")
    def _has_a_model(self) -> LlmJudgeRecipe:
        if self.url and not self.model:
            raise ValueError("url is given, but no model: say which one judges")
        return self


class EvaluationRecipe(Contract):
    """How candidate and baseline are looked at."""

    slices: tuple[str, ...] = Field(
        ("label", "length"),
        title="Slices",
        description="label, length (short, medium, long), or the name of a kept column.",
    )
    batch_size: int = Field(32, ge=1, le=4096, title="Batch size", description="For scoring.")
    generate_tokens: int = Field(
        0,
        ge=0,
        le=32768,
        title="Tokens to generate",
        description="For language models: answers of at most so many tokens are written (greedily) "
        "and compared with the reference. 0: none.",
    )
    must_match: str = Field(
        "", title="Must match", description="A regular expression that each answer must contain."
    )
    must_not_contain: tuple[str, ...] = Field(
        (), title="Must not contain", description="Strings that no answer may contain."
    )
    json_schema: str = Field(
        "",
        title="JSON schema",
        description="A JSON Schema (as JSON) that each answer must satisfy.",
    )
    guard: GuardRecipe = Field(
        default_factory=GuardRecipe,
        title="Guard set",
        description="Texts that must not be forgotten (language models).",
    )
    llm_judge: LlmJudgeRecipe = Field(
        default_factory=LlmJudgeRecipe,
        title="Judge",
        description="A model that compares the candidate's answers with the baseline's.",
    )
    benchmarks: tuple[str, ...] = Field(
        (),
        title="Harness tasks",
        description="Names of tasks of lm-evaluation-harness (language models), for the report "
        "alone; it must be installed: pip install 'burnish[benchmarks]'.",
    )
    benchmark_folder: str = Field(
        "",
        title="Harness folder",
        description="With task files (YAML) of your own; their data may lie beside them. Python "
        "beside them is run only from a folder of this machine.",
    )
    benchmark_limit: int = Field(
        0, ge=0, title="Harness limit", description="Examples of each task. 0: all."
    )

    cache_key_excludes = frozenset({"batch_size"})

    @field_validator("must_match")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(
                f"a Python regular expression is expected, not {value!r}, which is "
                f"no regular expression ({error})"
            ) from None
        return value

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, value: str) -> str:
        if not value:
            return value
        # Imported late: few recipes need it, and it takes a moment.
        import jsonschema

        try:
            schema = json.loads(value)
            jsonschema.validators.validator_for(
                schema, default=jsonschema.Draft202012Validator
            ).check_schema(schema)
        except (ValueError, jsonschema.SchemaError, AttributeError, TypeError) as error:
            raise ValueError(
                f"a JSON Schema is expected, not {value!r}, which is no usable JSON Schema: "
                f"{str(error).splitlines()[0]}"
            ) from None
        return value


class GateRecipe(Contract):
    """What a candidate must show before it is released."""

    claim: Literal["better", "not worse"] = Field(
        "not worse",
        title="Claim",
        description="better: better than the deployed release, beyond chance. not worse: not worse "
        "by more than the margin. A few hundred test examples can rarely prove 'better'.",
    )
    metric: Literal["auto"] | Metric = Field(
        "auto",
        title="Metric",
        description="accuracy, exact_match, checks and preferred (by evaluation.llm_judge) are "
        "tested "
        "exactly; the others by a paired bootstrap. auto: accuracy for classes and preferences, "
        "loss for language.",
    )
    margin: float = Field(
        0.02, ge=0, lt=1, title="Margin", description="For 'not worse': the loss that is accepted."
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, title="Confidence", description="One-sided, of the claim."
    )
    floors: dict[Metric, float] = Field(
        {},
        title="Floors",
        description="Least value of a metric, such as {accuracy: 0.9}; of loss and perplexity, the "
        "greatest.",
    )
    guard_margin: float = Field(
        0.1,
        gt=0,
        lt=1,
        title="Guard margin",
        description="Nats per token by which the loss on the guard set may rise.",
    )
    max_latency_ms: float | None = Field(
        None, gt=0, title="Latency budget (ms)", description="Per example, in scoring."
    )
    max_size_mb: float | None = Field(
        None, gt=0, title="Size budget (MB)", description="Of the files that ship."
    )
    slice_veto: bool = Field(
        True,
        title="Slices may veto",
        description="Reject when a slice is significantly worse (Holm-corrected), even if the "
        "whole is not.",
    )
    new_label_floor: float = Field(
        0.5,
        ge=0,
        le=1,
        title="Floor for new labels",
        description="Least recall on each label that the baseline never knew.",
    )
    first_run: Literal["floors", "untrained base"] = Field(
        "untrained base",
        title="Without a baseline",
        description="What a first candidate is held against: the floors alone, or the base model "
        "with an untrained head (it must be better), and the floors.",
    )
    min_examples: int = Field(
        150, ge=1, title="Least test examples", description="Fewer, and the gate rejects."
    )

    @model_validator(mode="after")
    def _consistent(self) -> GateRecipe:
        for metric, floor in self.floors.items():
            if metric in LOWER_IS_BETTER and floor > 0:
                continue
            if not 0 <= floor <= 1:
                raise ValueError(f"floors.{metric} is {floor}, but must be between 0 and 1")
        if self.first_run == "floors" and not self.floors:
            raise ValueError(
                "first_run is 'floors', but 'floors' is empty: a first candidate would pass unseen"
            )
        if self.claim == "not worse" and self.margin == 0:
            raise ValueError(
                "'not worse' by a margin of 0 can hardly be shown: give a margin, 0.01 or more, "
                "or claim 'better'"
            )
        return self
