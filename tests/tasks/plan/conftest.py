"""Small results of earlier stages, and inputs of planning."""

from __future__ import annotations

from typing import Any

from tasks.contracts.artifacts import Artifact, Source, SourceFile
from tasks.contracts.forecast import Forecast
from tasks.contracts.machine import GgufConverter, Machine
from tasks.contracts.results import Inspected, Loaded, Tokenized
from tasks.plan.plan import PlanInputs
from tasks.plan.preflight import PreflightInputs

LINEAR = ("encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.value")


CONVERTER = GgufConverter(
    script="/llama.cpp/convert_hf_to_gguf.py",
    digest="c",
    complete=True,
    architectures=("Bert", "LlamaForCausalLM"),
)
LIGER = {"liger-kernel": "0.8.5"}


def machine(**changes: Any) -> Machine:
    """A machine without a GPU, with all that training may ask for."""
    facts: dict[str, Any] = {
        "device": "cpu",
        "gpus": 0,
        "kind": "EPYC, 2 cores",
        "processor": "x86_64",
        "memory": 16 * 10**9,
        "host_memory": 16 * 10**9,
        "bf16": True,
        "lacks_to_compile": "",
        "converter": CONVERTER,
        "libraries": LIGER,
    }
    return Machine(**facts | changes)


def gpu_machine(**changes: Any) -> Machine:
    """The same with a GPU."""
    return machine(
        **{"device": "cuda", "gpus": 1, "kind": "A Card", "memory": 24 * 10**9} | changes
    )


def artifact(kind: str) -> Artifact:
    return Artifact(kind=kind, digest="d", files=1, bytes=1, uri="")


def source(size: int = 1000, path: str = "model.safetensors") -> Source:
    """A base model of one file."""
    file = SourceFile(path=path, size=size, digest="d", location="/m")
    return Source(uri="m", pinned="m", digest="d", files=(file,))


def inspected(**changes: Any) -> Inspected:
    facts = {
        "artifact": artifact("tokenizer"),
        "architecture": "Bert",
        "linear_modules": LINEAR,
        "head_modules": ("classifier",),
        "pad_token": "[PAD]",
        "vocabulary": 10,
        "max_length": 512,
        "parameters": 1,
    }
    return Inspected(**facts | changes)


def loaded(**rows: int) -> Loaded:
    """Data with 1000, 100 and 200 rows, or the given counts by split."""
    return Loaded(
        artifact=artifact("dataset"),
        labels=("a", "b"),
        rows={"train": 1000, "validation": 100, "test": 200, **rows},
        test_digest="t",
        new_shards=0,
        shards=1,
    )


def tokenized(**changes: Any) -> Tokenized:
    facts = {"shards": 1, "new_shards": 0, "tokens": 6000, "truncated": 0, "longest": 500}
    return Tokenized(artifact=artifact("tokens"), **facts | {"target_tokens": 2999} | changes)


def plan_inputs(**changes: Any) -> PlanInputs:
    """Inputs of a classifier's plan, all of it left open."""
    facts: dict[str, Any] = {
        "machine": machine(),
        "task": "text-classification",
        "quantization": "none",
        "training": {},
        "settings": {},
    }
    return PlanInputs(**facts | changes)


def preflight_inputs(**changes: Any) -> PreflightInputs:
    """Inputs of the checks of a classifier that passes them all."""
    facts: dict[str, Any] = {
        "machine": machine(),
        "task": "text-classification",
        "quantization": "none",
        "lora": {},
        "settings": {},
        "max_length": 256,
        "gguf": "none",
        "base": source(),
        "loaded": loaded(),
        "inspected": inspected(),
    }
    return PreflightInputs(**facts | changes)


def forecast_of(**changes: Any) -> Forecast:
    """The forecast of a training that needs 26 GB of a card of 24 GB."""
    facts = {
        "artifact": artifact("forecast"),
        "device": "cuda",
        "parts": {"weights": 16 * 10**9, "activations": 9 * 10**9, "transient": 10**9},
        "memory": 24 * 10**9,
        "reserve": 2 * 10**9,
        "fits": False,
        "micro_batch_tokens": 2048,
        "trained_parameters": 1_000_000,
    }
    return Forecast(**facts | changes)
