"""What a user may say: the recipe, which is also the form in the Prefect UI.

Every field has a title, a description and bounds, and a default wherever one makes sense: only
`name`, `data` and `model` must be given.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tasks.contracts.base import Contract, digest_of
from tasks.errors import BadRecipe

Task = Literal["text-classification", "completion", "instruction", "preference"]
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
Form = Literal["auto", "text", "prompt-completion", "alpaca", "messages", "sharegpt", "preference"]
FORMS: dict[str, tuple[Form, ...]] = {
    "text-classification": (),
    "completion": ("text", "prompt-completion"),
    "instruction": ("messages", "prompt-completion", "alpaca", "sharegpt"),
    "preference": ("preference",),
}
"""What each task's rows may look like."""
NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class SplitRecipe(Contract):
    """How examples go to train, validation and test."""

    by: Literal["hash", "column", "files"] = Field(
        "hash",
        title="Split by",
        description="hash: by a keyed hash of the input text (or of 'group_by'), so that an "
        "example never changes sides when data is added. column: a column says train, validation "
        "or test. files: the file names say it (train.jsonl, test-00000.parquet).",
    )
    column: str = Field("", title="Split column", description="Only for 'column'.")
    group_by: str = Field(
        "",
        title="Keep together by",
        description="A column whose equal values stay on one side: an author, a customer. Only "
        "for 'hash'.",
    )
    test: float = Field(
        0.15, gt=0, lt=1, title="Test share", description="Share of examples that judge. By hash."
    )
    validation: float = Field(
        0.1,
        gt=0,
        lt=1,
        title="Validation share",
        description="Share of examples that choose the best epoch. By hash.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> SplitRecipe:
        if self.test + self.validation >= 1:
            raise ValueError(
                f"test ({self.test}) and validation ({self.validation}) together leave nothing "
                "to train on: their sum must be below 1"
            )
        if (self.by == "column") != bool(self.column):
            raise ValueError("'column' must be given when, and only when, 'by' is column")
        if self.group_by and self.by != "hash":
            raise ValueError("'group_by' only works with a split by hash")
        return self


class DataRecipe(Contract):
    """What to train on."""

    not_in_key = frozenset({"uri"})

    uri: str | tuple[str, ...] = Field(
        title="Source",
        description="A file, folder or glob; s3://bucket/prefix; hf://owner/name@revision; "
        "package:module/path. A list reads several.",
    )
    format: Literal["auto", "jsonl", "csv", "parquet", "arrow", "text-folders"] = Field(
        "auto",
        title="Format",
        description="auto: by extension (.jsonl .json .csv .tsv .parquet .arrow). text-folders: "
        "one text file per example, in a folder named by its label.",
    )
    text: str = Field("text", title="Text column", description="The column that the model reads.")
    text_pair: str = Field(
        "", title="Second text column", description="For pairs, such as premise and hypothesis."
    )
    label: str = Field("label", title="Label column", description="The column to predict.")
    labels: tuple[str, ...] = Field(
        (),
        title="Labels",
        description="The allowed labels; any other is refused. Empty: those found in the data.",
    )
    form: Form = Field(
        "auto",
        title="Form of a row",
        description="For language models. auto: recognised row by row. text: one text. "
        "prompt-completion: prompt, completion. alpaca: instruction, input, output. messages: chat "
        "messages with role and content. sharegpt: conversations with from and value. preference: "
        "prompt, chosen, rejected.",
    )
    columns: dict[str, str] = Field(
        {},
        title="Columns by another name",
        description="For language models, where a form's column is called otherwise: "
        "{prompt: question, completion: answer}.",
    )
    keep_columns: tuple[str, ...] = Field(
        (), title="Columns to keep", description="Other columns to slice the evaluation by."
    )
    encoding: str = Field(
        "utf-8",
        title="Encoding",
        description="Of text formats: utf-8, cp1252… Several are tried in order for each file: "
        "'utf-8, cp1252'.",
    )
    delimiter: str = Field(
        ",", min_length=1, max_length=1, title="CSV delimiter", description="One character."
    )
    max_record_mb: float = Field(
        8.0,
        gt=0,
        le=512,
        title="Largest record (MB)",
        description="A longer line or text file is refused: it is nearly always a broken file.",
    )
    split: SplitRecipe = Field(
        default_factory=SplitRecipe, title="Splits", description="Train, validation and test."
    )

    @field_validator("uri")
    @classmethod
    def _some_data(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or not all(value if isinstance(value, tuple) else (value,)):
            raise ValueError("name at least one file, folder or URI")
        return value

    @property
    def uris(self) -> tuple[str, ...]:
        """All data URIs, as a tuple."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri


class ModelRecipe(Contract):
    """Which base model to fine-tune, and what form ships."""

    uri: str = Field(
        min_length=1,
        title="Base model",
        description="hf://owner/name@revision; a folder; s3://bucket/prefix; package:module/path. "
        "In safetensors, or one GGUF file (language models).",
    )
    ship: Literal["merged", "adapter"] = Field(
        "merged",
        title="What ships",
        description="merged: one ordinary model that needs nothing else. adapter: the adapter and "
        "the head alone, small, to be loaded on the same base model, which must be in safetensors: "
        "of a GGUF file, only a merged model ships.",
    )
    chat_template: str = Field(
        "",
        title="Chat template",
        description="For a chat model whose tokenizer brings none: chatml, or a template in Jinja. "
        "It ships with the model.",
    )
    gguf: Literal["none", "f32", "f16", "bf16", "q8_0"] = Field(
        "none",
        title="GGUF export",
        description="For llama.cpp and Ollama: a GGUF file of this type ships beside the merged "
        "model.",
    )


class LoraRecipe(Contract):
    """The adapter (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

    r: int = Field(16, ge=1, le=1024, title="Rank", description="Size of the adapter.")
    alpha: float = Field(
        32.0, gt=0, title="Alpha", description="The adapter's weight is alpha / rank."
    )
    dropout: float = Field(0.05, ge=0, lt=1, title="Dropout", description="On the adapter's input.")
    target_modules: tuple[str, ...] = Field(
        ("all-linear",),
        min_length=1,
        title="Target modules",
        description="all-linear, or the last parts of module names: query, value, q_proj.",
    )
    modules_to_save: tuple[str, ...] = Field(
        (),
        title="Modules to train in full",
        description="Besides the new classification head, which always is.",
    )
    rslora: bool = Field(
        False,
        title="Rank-stabilised",
        description="Weigh the adapter by alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732).",
    )
    dora: bool = Field(
        False,
        title="Decomposed",
        description="Train magnitudes apart from directions (DoRA, arXiv:2402.09353): slower.",
    )


class TrainingRecipe(Contract):
    """How long and how fast to train."""

    epochs: int = Field(
        3, ge=1, le=1000, title="Epochs", description="Passes over the training data."
    )
    batch_size: int = Field(
        16, ge=1, le=65536, title="Batch size", description="Examples per optimizer step."
    )
    learning_rate: float = Field(
        5e-4, gt=0, lt=1, title="Learning rate", description="Its highest value."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", title="Schedule", description="How the learning rate falls after warm-up."
    )
    warmup: float = Field(
        0.06, ge=0, lt=1, title="Warm-up", description="Share of the steps in which it rises."
    )
    weight_decay: float = Field(0.01, ge=0, lt=1, title="Weight decay", description="Of AdamW.")
    max_length: int = Field(
        256,
        ge=8,
        le=1_048_576,
        title="Maximum length",
        description="Tokens; longer texts are cut, and counted in the report.",
    )
    too_long: Literal["truncate", "drop", "split"] = Field(
        "truncate",
        title="Longer examples",
        description="For language models. truncate: cut at the end. drop: leave out. split: train "
        "on all of it, in pieces. All are counted in the report.",
    )
    beta: float = Field(
        0.1,
        gt=0,
        le=10,
        title="Beta",
        description="For preference: how strongly the model is held to its base (DPO, "
        "arXiv:2305.18290).",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", title="Precision", description="auto: bf16 where the processor computes in it."
    )
    best_by: Literal["auto", "accuracy", "precision", "recall", "f1", "loss"] = Field(
        "auto",
        title="Best epoch by",
        description="The validation metric that chooses the checkpoint that is kept. auto: "
        "accuracy for classification, loss for language models.",
    )
    early_stopping: int = Field(
        0,
        ge=0,
        title="Early stopping",
        description="Stop after so many epochs without a better one. 0: never.",
    )
    seed: int = Field(
        17, ge=0, le=2**31 - 1, title="Seed", description="Same seed, data and code: same model."
    )
    time_limit_minutes: float = Field(
        720, gt=0, title="Time limit (minutes)", description="Training is stopped after it."
    )

    not_in_key = frozenset({"time_limit_minutes"})


class PlanRecipe(Contract):
    """How it is trained, where a person knows better than the Plan."""

    not_in_key = frozenset({"micro_batch_tokens", "device_memory_gb"})

    attention: Literal["auto", "eager", "sdpa", "segments", "flash_attention_2"] = Field(
        "auto",
        title="Attention",
        description="segments: each example of a packed batch by itself (language models).",
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        title="Packing",
        description="For language models: examples one behind the other without padding, and "
        "without seeing each other.",
    )
    checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        title="Gradient checkpointing",
        description="Computes activations twice instead of keeping them. auto: where memory is "
        "short.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", title="Compile", description="With torch.compile. auto: where it pays."
    )
    kernels: Literal["auto", "none", "liger"] = Field(
        "auto",
        title="Kernels",
        description="liger: fused ones, from the package liger-kernel (language models, on CUDA). "
        "auto: where it is installed and knows the model.",
    )
    optimizer: Literal[
        "auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"
    ] = Field("auto", title="Optimizer", description="The last two need CUDA.")
    processes: int = Field(
        0,
        ge=0,
        le=1024,
        title="Processes",
        description="That train together, each on its own device. 0: one, or one for each GPU.",
    )
    sharding: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        title="Several processes",
        description="ddp: each holds the model. fsdp: the model is shared out among them.",
    )
    micro_batch_tokens: int = Field(
        0,
        ge=0,
        title="Tokens at once",
        description="Of one forward pass; the optimizer's batch stays the same. 0: by memory.",
    )
    device_memory_gb: float = Field(
        0,
        ge=0,
        title="Memory of the card (GB)",
        description="That training must fit into. 0: as found on the worker.",
    )


class GuardRecipe(Contract):
    """Texts that a language model must not forget while it learns others."""

    not_in_key = frozenset({"uri"})

    uri: str | tuple[str, ...] = Field(
        "",
        title="Source",
        description="As data.uri: a file, folder or glob; s3://bucket/prefix; "
        "hf://owner/name@revision; package:module/path. Every row of it judges. Empty: no guard.",
    )
    format: Literal["auto", "jsonl", "csv", "parquet", "arrow", "text-folders"] = Field(
        "auto", title="Format", description="As data.format."
    )
    form: Literal["auto", "text", "prompt-completion", "alpaca", "messages", "sharegpt"] = Field(
        "auto",
        title="Form of a row",
        description="As data.form. What is no text is scored as an answer, in chat.",
    )
    columns: dict[str, str] = Field(
        {}, title="Columns by another name", description="As data.columns."
    )

    @property
    def data(self) -> DataRecipe:
        """How the texts are read."""
        return DataRecipe(uri=self.uri, format=self.format, form=self.form, columns=self.columns)


class JudgeRecipe(Contract):
    """A language model that says which of two answers is the better one."""

    not_in_key = frozenset({"api_key_env", "time_out_seconds", "parallel"})

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
    def _has_a_model(self) -> JudgeRecipe:
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
    judge: JudgeRecipe = Field(
        default_factory=JudgeRecipe,
        title="Judge",
        description="A model that compares the candidate's answers with the baseline's.",
    )
    harness: tuple[str, ...] = Field(
        (),
        title="Harness tasks",
        description="Names of tasks of lm-evaluation-harness (language models), for the report "
        "alone; it must be installed: pip install 'burnish[harness]'.",
    )
    harness_folder: str = Field(
        "",
        title="Harness folder",
        description="With task files (YAML) of your own; their data may lie beside them.",
    )
    harness_limit: int = Field(
        0, ge=0, title="Harness limit", description="Examples of each task. 0: all."
    )

    not_in_key = frozenset({"batch_size"})

    @field_validator("must_match", "json_schema")
    @classmethod
    def _usable(cls, value: str, info: ValidationInfo) -> str:
        # The very code that will check answers; imported late, for few recipes need it.
        from tasks.judging.answers import Checks

        try:
            Checks(**{info.field_name: value})
        except BadRecipe as error:
            raise ValueError(f"{error.expected} is asked for, not {error.found}") from None
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
        description="accuracy, exact_match, checks and preferred (by evaluation.judge) are tested "
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


class PublishRecipe(Contract):
    """Where releases go."""

    targets: tuple[str, ...] = Field(
        (),
        title="Targets",
        description="Folders, s3://bucket/prefix, hf://owner/name. Empty: the store alone.",
    )
    private: bool = Field(
        True, title="Private", description="Whether a Hub repository that is created is private."
    )


class AnnounceRecipe(Contract):
    """Who is told of a release."""

    channel: str = Field(
        "production",
        pattern=NAME,
        title="Channel",
        description="The log that the release is entered in: production, staging…",
    )


class Recipe(Contract):
    """A retraining, as its owner describes it."""

    schema_version: Literal[1] = 1
    name: str = Field(
        pattern=NAME,
        title="Name",
        description="Of the model that is kept good: lower-case letters, digits and hyphens.",
    )
    task: Task = Field(
        "text-classification",
        title="Task",
        description="text-classification: a label for a text. completion: to write on. "
        "instruction: to answer, in chat. preference: to prefer one answer to another (DPO).",
    )
    data: DataRecipe = Field(title="Data", description="What to train on.")
    model: ModelRecipe = Field(title="Model", description="What to fine-tune.")
    lora: LoraRecipe = Field(default_factory=LoraRecipe, title="LoRA", description="The adapter.")
    quantization: Literal["none", "nf4"] = Field(
        "none",
        title="Quantization",
        description="Of the frozen base while it is trained: nf4 with double quantisation (QLoRA, "
        "arXiv:2305.14314) needs a quarter of the memory.",
    )
    training: TrainingRecipe = Field(
        default_factory=TrainingRecipe, title="Training", description="How long and how fast."
    )
    plan: PlanRecipe = Field(
        default_factory=PlanRecipe,
        title="Plan",
        description="How it is trained; picked by itself, and said in the report.",
    )
    evaluation: EvaluationRecipe = Field(
        default_factory=EvaluationRecipe, title="Evaluation", description="How models are scored."
    )
    gate: GateRecipe = Field(
        default_factory=GateRecipe, title="Gate", description="What a candidate must show."
    )
    publish: PublishRecipe = Field(
        default_factory=PublishRecipe, title="Publish", description="Where releases go."
    )
    announce: AnnounceRecipe = Field(
        default_factory=AnnounceRecipe, title="Announce", description="Who is told."
    )
    store: str = Field(
        "",
        title="Store",
        description="Where artifacts, keys and logs live: a folder or s3://bucket/prefix. "
        "Empty: $BURNISH_STORE, or .burnish in the working folder.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        own = {"label", "length", *self.data.keep_columns}
        unknown = [name for name in self.evaluation.slices if name not in own]
        if unknown:
            raise ValueError(
                f"evaluation.slices names {unknown}, which data.keep_columns does not keep: add "
                "them there"
            )
        return self

    @model_validator(mode="after")
    def _fits_task(self) -> Recipe:
        allowed = METRICS[self.task]
        asked = {"gate.metric": (self.gate.metric,), "gate.floors": tuple(self.gate.floors)}
        for where, metrics in asked.items():
            wrong = [name for name in metrics if name not in ("auto", *allowed)]
            if wrong:
                raise ValueError(
                    f"{where} names {', '.join(wrong)}, which is not measured for {self.task}: "
                    f"one of {', '.join(allowed)}"
                )
        generated = sorted({*asked["gate.metric"], *self.gate.floors} & set(GENERATED))
        if generated and not self.evaluation.generate_tokens:
            raise ValueError(
                f"the gate asks for {', '.join(generated)}, but evaluation.generate_tokens is 0: "
                "say how many tokens an answer may have"
            )
        self._check_extras({*asked["gate.metric"], *self.gate.floors})
        if self.data.form not in ("auto", *FORMS[self.task]):
            raise ValueError(
                f"data.form is {self.data.form}, which {self.task} cannot be trained on: "
                + (f"one of {', '.join(FORMS[self.task])}" if FORMS[self.task] else "leave it out")
            )
        if self.model.gguf != "none" and self.model.ship == "adapter":
            raise ValueError("model.gguf is made from the merged model: set model.ship to merged")
        return self

    def _check_extras(self, metrics: set[str]) -> None:
        """Whether guard and judge have what they need."""
        guard, judge = self.evaluation.guard, self.evaluation.judge
        if guard.uri and self.task == "text-classification":
            raise ValueError("evaluation.guard is for language models: leave it out")
        if self.evaluation.harness and self.task == "text-classification":
            raise ValueError("evaluation.harness is for language models: leave it out")
        if judge.url and "preferred" not in METRICS[self.task]:
            raise ValueError(f"evaluation.judge compares answers, which {self.task} has none of")
        if judge.url and not self.evaluation.generate_tokens:
            raise ValueError(
                "evaluation.judge compares answers, but evaluation.generate_tokens is 0: say how "
                "many tokens an answer may have"
            )
        if "preferred" not in metrics:
            return
        if not judge.url:
            raise ValueError(
                "the gate asks for preferred, but evaluation.judge has no url: say which model "
                "judges"
            )
        if self.gate.first_run == "floors":
            raise ValueError(
                "gate.first_run is 'floors', but preferred needs a baseline to be preferred to: "
                "set it to 'untrained base'"
            )
        if judge.max_examples < self.gate.min_examples:
            raise ValueError(
                f"evaluation.judge.max_examples is {judge.max_examples}, but the gate asks for "
                f"{self.gate.min_examples} (gate.min_examples)"
            )

    def settled(self) -> Recipe:
        """The recipe with every `auto` that depends on the task alone replaced by what it means."""
        classes = self.task == "text-classification"
        best, metric = self.training.best_by, self.gate.metric
        changes: dict[str, Any] = {
            "training": self.training.model_copy(
                update={"best_by": ("accuracy" if classes else "loss") if best == "auto" else best}
            ),
            "gate": self.gate.model_copy(
                update={"metric": METRICS[self.task][0] if metric == "auto" else metric}
            ),
        }
        if not classes:
            slices = tuple(name for name in self.evaluation.slices if name != "label")
            changes["evaluation"] = self.evaluation.model_copy(update={"slices": slices})
        return self.model_copy(update=changes)

    @property
    def digest(self) -> str:
        """SHA-256 of all that the recipe says."""
        return digest_of(self.model_dump(mode="json"))


def parse_recipe(data: Any, where: str) -> Recipe:
    """Check a recipe and name every problem at once.

    Args:
        data: The recipe as plain values, as YAML gives it.
        where: Its file, for messages.

    Raises:
        BadRecipe: With one line per problem: the field's path, what is wrong, and for an unknown
            field the nearest known one.
    """
    if not isinstance(data, dict):
        raise BadRecipe(where, type(data).__name__, "a mapping of fields", "start with 'name: …'")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems = [_explain(item) for item in error.errors()]
        raise BadRecipe(
            where,
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  - "
            + "\n  - ".join(problems)
            + "\n",
            "a valid recipe",
            "correct the fields above; `burnish check RECIPE` checks it without training",
        ) from None


def _explain(problem: Any) -> str:
    # Pydantic adds the tried union members ("str", "tuple[str, ...]") to the path: not fields.
    location = [part for part in problem["loc"] if "[" not in str(part) and part != "str"]
    path = ".".join(str(part) for part in location) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"{path}: unknown field; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    found = problem.get("input")
    # What stands where a key's name is expected may be the key.
    secret = location[-2:-1] == ["judge"]
    if secret or isinstance(found, dict | list | tuple | BaseModel) or problem["type"] == "missing":
        return f"{path}: {message}"
    return f"{path}: found {found!r}; {message}"


def _fields_at(path: list[Any]) -> list[str]:
    model: Any = Recipe
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
