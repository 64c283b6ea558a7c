"""The recipe's sections on scoring and the gate."""

from __future__ import annotations

import json
import re
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from tasks.contracts.base import Contract
from tasks.contracts.recipe_data import DataRecipe
from tasks.contracts.task_tables import LOWER_IS_BETTER, Metric


class GuardRecipe(Contract):
    """Texts on which a language model must not get worse by fine-tuning on others."""

    cache_key_excludes = frozenset({"uri"})

    uri: str | tuple[str, ...] = Field(
        "",
        title="Source",
        description="As data.uri: a file, folder or glob; s3://bucket/prefix; "
        "hf://owner/name@revision; package:module/path. All rows are scored. Empty: no guard.",
    )
    format: Literal["auto", "jsonl", "csv", "parquet", "arrow", "text-folders"] = Field(
        "auto", title="Format", description="As data.format."
    )
    row_format: Literal["auto", "text", "prompt-completion", "alpaca", "messages", "sharegpt"] = (
        Field(
            "auto",
            title="Row format",
            description="As data.row_format. All formats but text are scored as chat answers.",
        )
    )
    columns: dict[str, str] = Field({}, title="Column names", description="As data.columns.")

    @property
    def data(self) -> DataRecipe:
        """How the texts are read."""
        return DataRecipe(
            uri=self.uri, format=self.format, row_format=self.row_format, columns=self.columns
        )


class LlmJudgeRecipe(Contract):
    """The LLM judge: a language model that picks the better of two answers."""

    cache_key_excludes = frozenset({"api_key_env", "time_out_seconds", "parallel"})

    url: str = Field(
        "",
        title="URL",
        description="Base URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1. "
        "Empty: no LLM judge.",
    )
    model: str = Field("", title="Model", description="The judge's model name on that server.")
    prompt: str = Field(
        "",
        title="Prompt",
        description="Must contain {question}, {answer_a} and {answer_b}, and may contain "
        "{reference}. It must tell the judge to end with [[A]], [[B]] or [[C]] (tie). Empty: the "
        "built-in prompt.",
    )
    api_key_env: str = Field(
        "",
        title="API key variable",
        description="Name of the environment variable that holds the API key, never the key "
        "itself. Empty: the server needs no key.",
    )
    max_examples: int = Field(
        300,
        ge=1,
        le=100_000,
        title="Maximum examples",
        description="Number of examples to judge, each twice: with the answers in both orders.",
    )
    time_out_seconds: float = Field(
        120, gt=0, le=3600, title="Timeout (seconds)", description="For one request to the judge."
    )
    parallel: int = Field(
        4,
        ge=1,
        le=256,
        title="Parallel requests",
        description="Requests sent to the judge at a time.",
    )

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        # The message does not repeat the URL, which may contain a key.
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it must begin with http:// or https:// and name a server")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "it must have no user, query or fragment: a key is passed by api_key_env"
            )
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
            raise ValueError("url is set, but model is empty: name the model that judges")
        return self


class EvaluationRecipe(Contract):
    """How candidate and baseline are scored."""

    slices: tuple[str, ...] = Field(
        ("label", "length"),
        title="Slices",
        description="label, length (short, medium, long), or the name of a kept column.",
    )
    batch_size: int = Field(
        32, ge=1, le=4096, title="Batch size", description="Examples per batch in scoring."
    )
    generate_tokens: int = Field(
        0,
        ge=0,
        le=32768,
        title="Tokens to generate",
        description="For language models: the maximum length of the answers that are generated "
        "(greedily) and compared with the references. 0: no answers are generated.",
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
        description="Texts on which the model must not get worse (language models).",
    )
    llm_judge: LlmJudgeRecipe = Field(
        default_factory=LlmJudgeRecipe,
        title="LLM judge",
        description="A model that compares the candidate's answers with the baseline's.",
    )
    benchmarks: tuple[str, ...] = Field(
        (),
        title="Benchmark tasks",
        description="Tasks of lm-evaluation-harness (language models). They appear in the report "
        "and do not affect the gate. Needs: pip install 'burnish[benchmarks]'.",
    )
    benchmark_folder: str = Field(
        "",
        title="Benchmark folder",
        description="Folder with your own task files (YAML), and their data if you like. Python "
        "files in it are run only if it is a local folder.",
    )
    benchmark_limit: int = Field(
        0, ge=0, title="Benchmark limit", description="Maximum examples per task. 0: all."
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
    """What a candidate must prove before it is released."""

    # They come after the verdict.
    cache_key_excludes: ClassVar[frozenset[str]] = frozenset({"approval", "approval_hours"})

    claim: Literal["better", "not worse"] = Field(
        "not worse",
        title="Claim",
        description="better: better than the deployed release, beyond chance. not worse: not worse "
        "by more than the margin. A few hundred test examples can rarely prove 'better'.",
    )
    metric: Literal["auto"] | Metric = Field(
        "auto",
        title="Metric",
        description="auto: accuracy for classification and preference, loss for other language "
        "models. accuracy, exact_match, checks and preferred (by evaluation.llm_judge) are tested "
        "exactly, the others by a paired bootstrap.",
    )
    margin: float = Field(
        0.02,
        ge=0,
        lt=1,
        title="Margin",
        description="For 'not worse': how much worse the metric may be.",
    )
    confidence: float = Field(
        0.95,
        ge=0.6,
        le=0.999,
        title="Confidence",
        description="Confidence of the one-sided test of the claim.",
    )
    looks: int = Field(
        0,
        ge=0,
        le=1000,
        title="Looks",
        description="How many verdicts the test set is to serve: so many equally good candidates "
        "together pass by luck as seldom as one would, and each finds it harder. A verdict counts "
        "by the share of today's test rows that it used. 0: each verdict stands alone.",
    )
    anchor: str = Field(
        "first",
        min_length=1,
        title="Anchor",
        description="An earlier release that each candidate must not be worse than, so that many "
        "small losses cannot add up. first: the first release since task, labels or metric "
        "changed; a release that is better beyond chance takes its place. The version of a "
        "release: that one. none: no anchor.",
    )
    anchor_margin: float = Field(
        0.0,
        ge=0,
        lt=1,
        title="Anchor margin",
        description="How much worse than the anchor the metric may be. 0: as the margin.",
    )
    floors: dict[Metric, float] = Field(
        {},
        title="Floors",
        description="Minimum of each metric, such as {accuracy: 0.9}; for loss and perplexity, the "
        "maximum.",
    )
    guard_margin: float = Field(
        0.1,
        gt=0,
        lt=1,
        title="Guard margin",
        description="Nats per token by which the loss on the guard set may rise.",
    )
    max_latency_ms: float | None = Field(
        None,
        gt=0,
        title="Latency budget (ms)",
        description="Maximum latency per example, measured in scoring.",
    )
    max_size_mb: float | None = Field(
        None,
        gt=0,
        title="Size budget (MB)",
        description="Maximum total size of the released files.",
    )
    slice_veto: bool = Field(
        True,
        title="Slices may veto",
        description="Reject if a slice is significantly worse (Holm-corrected), even if the whole "
        "test set is not.",
    )
    new_label_floor: float = Field(
        0.5,
        ge=0,
        le=1,
        title="Floor for new labels",
        description="Minimum recall on each label that the baseline does not have.",
    )
    first_run: Literal["floors", "untrained base"] = Field(
        "untrained base",
        title="First run",
        description="What the first candidate is compared with. untrained base: the base model "
        "with an untrained head, which it must beat. floors: the floors only. A first classifier "
        "must also beat always answering the most frequent label, and recognize every label that "
        "has at least 10 test examples.",
    )
    min_examples: int = Field(
        150, ge=1, title="Minimum test examples", description="With fewer, the gate rejects."
    )
    approval: Literal["none", "person"] = Field(
        "none",
        title="Approval",
        description="person: what passes the gate is released once a person approves it, on the "
        "run's page or with `burnish approve`.",
    )
    approval_hours: float = Field(
        72,
        gt=0,
        le=696,
        title="Approval within (hours)",
        description="After so long without an answer, the candidate counts as rejected.",
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
                "first_run is 'floors', but 'floors' is empty: any first candidate would pass"
            )
        if self.claim == "not worse" and self.margin == 0:
            raise ValueError(
                "'not worse' by a margin of 0 can hardly be proved: set a margin of 0.01 or more, "
                "or claim 'better'"
            )
        if self.anchor != "none" and not (self.anchor_margin or self.margin):
            raise ValueError(
                "'anchor' needs a margin: set anchor_margin to 0.01 or more, or anchor to 'none'"
            )
        return self
