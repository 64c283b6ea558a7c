"""A candidate as the steps of a run leave it."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.contracts.artifacts import Artifact, Source
from tasks.contracts.candidate import Candidate, GuardSet
from tasks.contracts.plan import Plan
from tasks.contracts.recipe_release import PublishRecipe
from tasks.contracts.results import (
    Benchmarked,
    Comparisons,
    ConvertedGguf,
    Finetuned,
    GgufExported,
    Inspected,
    Loaded,
    Provenance,
    Scored,
    Tokenized,
)
from tasks.contracts.verdict import GateResult, Verdict
from tasks.release import deployment_log
from tasks.release.announce import announce
from tasks.release.inputs import ReleaseInputs
from tasks.release.publish import publish
from tasks.storage.store import open_store
from tests.tasks.plan.conftest import machine
from tests.tasks.release.samples import MODEL, send_nowhere
from tests.tasks.samples import run_context

MADE = Provenance(
    run_id="1", run_name="one", at="now", seconds=1.0, libraries={"torch": "2"}, code="c"
)
VERDICT = Verdict(
    outcome="promoted",
    rules=(),
    candidate_digest="finetune",
    baseline="none",
    baseline_digest="",
    baseline_entry=0,
    test_digest="t",
    look_number=1,
    examples=20,
    dropped=0,
    baseline_seen="no baseline",
    summary="Promoted.",
)


RECIPE = {
    "name": "tiny",
    "task": "instruction",
    "quantization": "none",
    "model": {"ship": "merged"},
    "publish": {"targets": ["/releases"], "private": False},
}
RECIPE_PARTS: dict[str, Any] = {
    "name": "tiny",
    "channel": "production",
    "publish": RECIPE["publish"],
    "log_number": 0,
    "recipe": RECIPE,
    "recipe_digest": "of recipe",
    "task": "instruction",
    "data": {"uri": "data.jsonl"},
    "base": {"uri": "model"},
    "lora": {},
    "quantization": "none",
    "training": {},
}


def facts(name: str) -> dict:
    """What every step returns, under a digest and key that name the step."""
    return {
        "artifact": Artifact(kind=name, digest=name, files=1, bytes=1, uri=""),
        "key": f"key of {name}",
        "provenance": MADE,
    }


def source(name: str) -> Source:
    return Source(uri=f"{name}.jsonl", pinned=f"{name}@1", digest=f"of {name}", files=())


def scored(name: str, loss: float) -> Scored:
    metrics = {"loss": loss}
    return Scored(**facts(name), model_digest="m", labels=(), metrics=metrics, size_bytes=1)


def loaded(name: str, **changes) -> Loaded:
    rows = {"train": 100, "validation": 10, "test": 20}
    said = {"labels": (), "rows": rows, "test_digest": "t", "new_shards": 1, "shards": 1}
    return Loaded(**facts(name) | said | changes)


GGUF_EXPORTED = GgufExported(**facts("gguf-export"), file="model-f16.gguf")
FINETUNED = Finetuned(
    **facts("finetune"), metrics={}, history=(), best_epoch=1, steps=1, trained_parameters=1
)


@pytest.fixture
def store(tmp_path):
    return open_store(run_context(tmp_path).store)


@pytest.fixture
def inputs(store):
    """Inputs of the release of a candidate without optional results, with changes."""
    with store.scratch() as scratch:
        (scratch / "d").mkdir()
        (scratch / "d" / "report.json").write_text("{}")
        (scratch / "d" / "seen.npy").touch()
        dataset = store.put("dataset", scratch / "d")

    def make(**changes) -> ReleaseInputs:
        made = {
            "machine": machine(),
            "data": source("data"),
            "model": source("model"),
            "plan": Plan(device="cpu", precision="fp32"),
            "loaded": loaded("load", artifact=dataset),
            "inspected": Inspected(
                **facts("inspect"),
                architecture="Llama",
                parameters=1,
                max_length=9,
                linear_modules=(),
                head_modules=(),
                pad_token="",
                vocabulary=9,
            ),
            "tokenized": Tokenized(
                **facts("tokenize"), shards=1, new_shards=1, tokens=1, truncated=0, longest=1
            ),
            "finetuned": FINETUNED,
            "scored": scored("evaluate", 1.0),
            "baseline": None,
            "gate_result": GateResult(**facts("gate"), verdict=VERDICT),
        }
        return ReleaseInputs(candidate=Candidate(**made | changes), **RECIPE_PARTS)

    return make


@pytest.fixture
def publishable(store, inputs):
    """Inputs of the release of a model with the given weights at some targets; a GGUF file with the
    given content ships too."""

    def put(kind: str, files: dict[str, bytes]) -> Artifact:
        with store.scratch() as scratch:
            (scratch / kind).mkdir()
            for name, content in files.items():
                (scratch / kind / name).write_bytes(content)
            return store.put(kind, scratch / kind)

    def make(
        settings: PublishRecipe, weights: bytes = b"weights", gguf: bytes = b"", **more: Any
    ) -> ReleaseInputs:
        model = put("model", {"model.safetensors": weights})
        produced: dict[str, Any] = {
            "finetuned": FINETUNED.model_copy(update={"artifact": model}),
        }
        if gguf:
            exported = put("gguf", {"model-f16.gguf": gguf, "Modelfile": b"FROM ./model-f16.gguf"})
            produced["gguf_exported"] = GGUF_EXPORTED.model_copy(update={"artifact": exported})
        recipe = RECIPE | {"publish": settings.model_dump(mode="json")}
        changes = {"publish": settings, "recipe": recipe, **more}
        return inputs(**produced).model_copy(update=changes)

    return make


@pytest.fixture
def context(tmp_path):
    return run_context(tmp_path, run_name="calm-otter")


@pytest.fixture
def targets(tmp_path):
    """Where `deploy` publishes."""
    return (str(tmp_path / "releases"),)


@pytest.fixture
def deploy(publishable, context, store, targets, monkeypatch):
    """Releases weights; returns the log's newest entry."""
    send_nowhere(monkeypatch)

    def deploy(weights: bytes, announced: bool = True, **changes: Any):
        newest = deployment_log.head(store, *MODEL)
        settings = PublishRecipe(targets=changes.pop("targets", targets), private=False)
        number = newest.number if newest else 0
        claim = publish.fn(publishable(settings, weights, log_number=number, **changes), context)
        return announce.fn(claim, context) if announced else claim

    return deploy


OPTIONAL = {
    "converted": ConvertedGguf(**facts("gguf"), architecture="Llama", dtype="bfloat16"),
    "gguf_exported": GGUF_EXPORTED,
    "guard": GuardSet(loaded=loaded("guard"), task="completion", source=source("guard")),
    "guard_scored": scored("guard_evaluate", 2.0),
    "guard_baseline": scored("guard_baseline", 3.0),
    "compared": Comparisons(
        **facts("llm-judge"),
        llm_judge="wise",
        preferred=0.75,
        wins=10,
        ties=10,
        losses=0,
        inconsistent=1,
        unreadable=2,
    ),
    "benchmarks": Benchmarked(
        **facts("benchmarks"), results={"ships": {"acc": 0.5}}, examples={"ships": 9}
    ),
    "benchmark_baseline": Benchmarked(
        **facts("benchmark_baseline"), results={"ships": {"acc": 0.25}}, examples={"ships": 9}
    ),
    "benchmark_folder": source("own"),
}
