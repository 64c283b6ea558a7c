"""The recipe: what to retrain, and how.

Every field has a title, a description and bounds. Only `name`, `data` and `model` have no default.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from tasks.contracts.base import Contract, digest_of
from tasks.contracts.credentials import credentials_in
from tasks.contracts.errors import BadRecipe
from tasks.contracts.recipe_data import DataRecipe, Task
from tasks.contracts.recipe_evaluation import EvaluationRecipe, GateRecipe
from tasks.contracts.recipe_release import NAME, NAME_FORMAT, AnnounceRecipe, PublishRecipe
from tasks.contracts.recipe_training import LoraRecipe, ModelRecipe, PlanRecipe, TrainingRecipe
from tasks.contracts.recipe_watch import WatchRecipe
from tasks.contracts.task_tables import GENERATED, METRICS, ROW_FORMATS


class Recipe(Contract):
    """A model's retraining, as its owner describes it."""

    schema_version: Literal[1] = 1
    name: str = Field(
        pattern=NAME,
        title="Name",
        description="The model's name: lower-case letters, digits and hyphens.",
    )
    task: Task = Field(
        "text-classification",
        title="Task",
        description="text-classification: label a text. completion: continue a text. "
        "instruction: answer in a chat. preference: prefer one answer to another (DPO).",
    )
    data: DataRecipe = Field(title="Data", description="What to train on.")
    model: ModelRecipe = Field(title="Model", description="What to fine-tune.")
    lora: LoraRecipe = Field(default_factory=LoraRecipe, title="LoRA", description="The adapter.")
    quantization: Literal["none", "nf4"] = Field(
        "none",
        title="Quantization",
        description="How the frozen base model is held during training. nf4: 4-bit with double "
        "quantization (QLoRA, arXiv:2305.14314), a quarter of the memory.",
    )
    training: TrainingRecipe = Field(
        default_factory=TrainingRecipe, title="Training", description="How long and how fast."
    )
    plan: PlanRecipe = Field(
        default_factory=PlanRecipe,
        title="Plan",
        description="How the model is trained: chosen automatically, and explained in the report.",
    )
    evaluation: EvaluationRecipe = Field(
        default_factory=EvaluationRecipe, title="Evaluation", description="How models are scored."
    )
    gate: GateRecipe = Field(
        default_factory=GateRecipe,
        title="Gate",
        description="What a candidate must prove before it is released.",
    )
    publish: PublishRecipe = Field(
        default_factory=PublishRecipe, title="Publish", description="Where releases go."
    )
    announce: AnnounceRecipe = Field(
        default_factory=AnnounceRecipe,
        title="Announce",
        description="Where releases are announced.",
    )
    watch: WatchRecipe = Field(
        default_factory=WatchRecipe,
        title="Watch",
        description="When new data start a retraining.",
    )
    unlocked: tuple[str, ...] = Field(
        (),
        title="Unlocked",
        description="Fields of gate, publish and announce that a form or an event may change for "
        "one run, such as gate.margin.",
    )
    store: str = Field(
        "",
        title="Store",
        description="Where artifacts, keys and logs are kept: a folder or s3://bucket/prefix. "
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
                f"the gate uses {', '.join(generated)}, but evaluation.generate_tokens is 0: "
                "set the maximum number of tokens of an answer"
            )
        self._check_extras({*asked["gate.metric"], *self.gate.floors})
        if self.data.row_format not in ("auto", *ROW_FORMATS[self.task]):
            raise ValueError(
                f"data.row_format is {self.data.row_format}, which {self.task} cannot be trained "
                "on: "
                + (
                    f"one of {', '.join(ROW_FORMATS[self.task])}"
                    if ROW_FORMATS[self.task]
                    else "leave it out"
                )
            )
        if self.model.gguf != "none" and self.model.ship == "adapter":
            raise ValueError("model.gguf is made from the merged model: set model.ship to merged")
        return self

    def _check_extras(self, metrics: set[str]) -> None:
        """Check that the guard set and the LLM judge have what they need."""
        guard, judge = self.evaluation.guard, self.evaluation.llm_judge
        if guard.uri and self.task == "text-classification":
            raise ValueError("evaluation.guard is for language models: leave it out")
        if self.evaluation.benchmarks and self.task == "text-classification":
            raise ValueError("evaluation.benchmarks is for language models: leave it out")
        if judge.url and "preferred" not in METRICS[self.task]:
            raise ValueError(f"evaluation.llm_judge compares answers, but {self.task} has none")
        if judge.url and not self.evaluation.generate_tokens:
            raise ValueError(
                "evaluation.llm_judge compares answers, but evaluation.generate_tokens is 0: set "
                "the maximum number of tokens of an answer"
            )
        if "preferred" not in metrics:
            return
        if not judge.url:
            raise ValueError(
                "the gate uses preferred, but evaluation.llm_judge has no url: name its server"
            )
        if self.gate.first_run == "floors":
            raise ValueError(
                "gate.first_run is 'floors', but preferred needs a baseline to compare with: "
                "set it to 'untrained base'"
            )
        if judge.max_examples < self.gate.min_examples:
            raise ValueError(
                f"evaluation.llm_judge.max_examples is {judge.max_examples}, but the gate needs "
                f"{self.gate.min_examples} (gate.min_examples)"
            )

    def resolved(self) -> Recipe:
        """Return the recipe with every `auto` that depends on the task alone resolved."""
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
        """SHA-256 of the whole recipe."""
        return digest_of(self.model_dump(mode="json"))


def parse_recipe(data: Any, where: str) -> Recipe:
    """Validate a recipe, and report all problems at once.

    Args:
        data: The recipe as plain values, as read from YAML.
        where: Its file, for messages.

    Raises:
        BadRecipe: With one line per problem: the field's path, what is wrong, and for an unknown
            field the nearest known one.
    """
    if not isinstance(data, dict):
        raise BadRecipe(where, type(data).__name__, "a mapping of fields", "start with 'name: …'")
    if found := list(credentials_in(data)):
        raise BadRecipe(
            f"{where}: {', '.join(path for path, _ in found)}",
            f"what looks like {found[0][1]}",
            "no credentials: recipes are stored and shown",
            "take it out, change it where it was issued, and set it in the worker's environment",
        )
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


# Pydantic speaks of Python's types.
_PLAIN_MESSAGES = {
    "tuple_type": "input should be a list, such as [a, b]",
    "dict_type": "input should be a mapping, such as {a: b}",
    "model_type": "input should be a mapping of fields",
    "string_type": "input should be a text",
}


def _explain(problem: Any) -> str:
    # Pydantic adds the tried union members ("str", "tuple[str, ...]") to the path: not fields.
    location = [part for part in problem["loc"] if "[" not in str(part) and part != "str"]
    path = ".".join(str(part) for part in location) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"{path}: unknown field; {hint}"
    message = _PLAIN_MESSAGES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch":
        message = f"input should be {NAME_FORMAT}"
    message = message[0].lower() + message[1:]
    found = problem.get("input")
    # The value of a field for the name of a key may be the key itself.
    secret = location[-2:-1] == ["llm_judge"]
    if secret or isinstance(found, dict | list | tuple | BaseModel) or problem["type"] == "missing":
        return f"{path}: {message}"
    return f"{path}: found {found!r}; {message}"


def _fields_at(path: list[Any]) -> list[str]:
    model: Any = Recipe
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
