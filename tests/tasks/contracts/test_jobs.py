"""Jobs and results: nothing in them decides a result, and JSON keeps them as they are."""

import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.contracts import jobs
from tasks.contracts.base import Contract
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_training import LoraRecipe, TrainingRecipe

MODELS = [
    model
    for _, model in inspect.getmembers(jobs, inspect.isclass)
    if issubclass(model, Contract) and model.__module__ == jobs.__name__
]
FINETUNE = jobs.FinetuneJob(
    task="completion",
    base=Path("base"),
    base_pin=jobs.PinnedBase(uri="hf://owner/name@abc", digest="0" * 64),
    tokenizer=Path("tokenizer"),
    shards=(jobs.TokenShard(digest="1" * 64, tokens=Path("/tokens.parquet")),),
    keep_file=Path("keep.npz"),
    labels=(),
    head_modules=(),
    lora=LoraRecipe(r=3, dropout=0.1),
    quantization="nf4",
    training=TrainingRecipe(epochs=2, learning_rate=1e-4 / 3),
    plan=Plan(device="cpu", precision="bf16", why={"precision": "the processor computes in it"}),
    ship="merged",
    micro_batch_examples=0,
    halvings=0,
    micro_batch_tokens=0,
    max_micro_batch_tokens=7,
    tight_memory=False,
    work=Path("work"),
    resume_from=None,
    stop_seconds=15.0,
    out=Path("out"),
    check_out=Path("check"),
)


class TestEveryModel:
    @pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
    def test_has_no_defaults(self, model):
        assert all(field.is_required() for field in model.model_fields.values())

    @pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
    def test_computes_nothing(self, model):
        found = model.__pydantic_decorators__
        assert not any(getattr(found, kind) for kind in found.__slots__)
        own = {name for name, value in vars(model).items() if inspect.isfunction(value)}
        assert own <= {"__hash__"}

    @pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
    def test_is_frozen_and_refuses_unknown_fields(self, model):
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"


class TestAJob:
    def test_is_the_same_after_a_trip_through_json(self):
        assert jobs.FinetuneJob.model_validate_json(FINETUNE.model_dump_json()) == FINETUNE

    @pytest.mark.parametrize("field", ["base", "plan", "resume_from", "tight_memory"])
    def test_needs_every_field(self, field):
        fields = json.loads(FINETUNE.model_dump_json())
        del fields[field]
        with pytest.raises(ValidationError, match=field):
            jobs.FinetuneJob.model_validate(fields)


class TestAResult:
    def test_keeps_numbers_that_are_not_finite(self):
        result = jobs.FinetuneResult(
            metrics={"loss": math.nan, "perplexity": math.inf},
            check_loss=math.nan,
            history=({"loss": 0.1 + 0.2},),
            best_epoch=1.0,
            steps=3,
            trained_parameters=4,
            warnings=("the loss never moved",),
        )
        again = jobs.FinetuneResult.model_validate(json.loads(result.model_dump_json()))
        assert math.isnan(again.metrics["loss"])
        assert again.metrics["perplexity"] == math.inf
        assert again.history == result.history


def test_importing_the_module_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'prefect', 'pyarrow', 'numpy'}"
    code = f"import sys, tasks.contracts.jobs; sys.exit(bool({heavy} & sys.modules.keys()))"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
