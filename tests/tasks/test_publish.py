"""What a release says of itself: its provenance and its card name every step that made it."""

from __future__ import annotations

import json

import pytest

from tasks.contracts.artifact import (
    Artifact,
    Benchmarked,
    Comparisons,
    Finetuned,
    Inspected,
    Loaded,
    Made,
    Plan,
    Scored,
    Source,
    Tokenized,
    Unpacked,
)
from tasks.contracts.candidate import Candidate, GuardSet
from tasks.contracts.recipe import Recipe
from tasks.contracts.verdict import Judged, Verdict
from tasks.publish import provenance
from tasks.release.card import model_card
from tasks.store import open_store
from tests.tasks.samples import room

MADE = Made(run_id="1", run_name="one", at="now", seconds=1.0, libraries={"torch": "2"}, code="c")
ALWAYS = {"load", "examine", "tokenize", "finetune", "evaluate", "gate"}
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


def facts(name: str) -> dict:
    """What every step returns, under a digest and key that name the step."""
    return {
        "artifact": Artifact(kind=name, digest=name, files=1, bytes=1, uri=""),
        "key": f"key of {name}",
        "made": MADE,
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


@pytest.fixture
def store(tmp_path):
    return open_store(room(tmp_path).store)


@pytest.fixture
def candidate(store):
    """A candidate for which nothing was asked beside the test examples, changed as told."""
    with store.scratch() as scratch:
        (scratch / "d").mkdir()
        (scratch / "d" / "report.json").write_text("{}")
        dataset = store.put("dataset", scratch / "d")

    def make(**changes) -> Candidate:
        made = {
            "recipe": Recipe(
                name="tiny", task="instruction", data={"uri": "data.jsonl"}, model={"uri": "model"}
            ),
            "data": source("data"),
            "model": source("model"),
            "plan": Plan(device="cpu", precision="fp32"),
            "loaded": loaded("load", artifact=dataset),
            "inspected": Inspected(
                **facts("examine"),
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
            "finetuned": Finetuned(
                **facts("finetune"),
                metrics={},
                history=(),
                best_epoch=1,
                steps=1,
                trained_parameters=1,
            ),
            "scored": scored("evaluate", 1.0),
            "baseline": None,
            "judged": Judged(**facts("gate"), verdict=VERDICT),
        }
        return Candidate(**made | changes)

    return make


BESIDE = {
    "unpacked": Unpacked(**facts("unpack"), architecture="Llama", dtype="bfloat16"),
    "guard": GuardSet(loaded=loaded("guard"), task="completion", source=source("guard")),
    "guard_scored": scored("guard_evaluate", 2.0),
    "guard_baseline": scored("guard_baseline", 3.0),
    "compared": Comparisons(
        **facts("compare"),
        judge="wise",
        preferred=0.75,
        wins=10,
        ties=10,
        losses=0,
        turned=1,
        unreadable=2,
    ),
    "harness": Benchmarked(
        **facts("harness"), results={"ships": {"acc": 0.5}}, examples={"ships": 9}
    ),
    "harness_baseline": Benchmarked(
        **facts("harness_baseline"), results={"ships": {"acc": 0.25}}, examples={"ships": 9}
    ),
    "harness_folder": source("own"),
}


class TestProvenance:
    def test_names_what_was_asked_beside_the_test_examples(self, candidate, store):
        found = provenance(candidate(**BESIDE), store)
        more = {"unpack", "guard", "guard_evaluate", "guard_baseline", "compare"}
        assert set(found["steps"]) == ALWAYS | more | {"harness", "harness_baseline"}
        for name, said in found["steps"].items():
            assert said["key"] == f"key of {name}" and said["made"]["libraries"]
            assert said["artifact"] == name or name == "load"
        guard = {"uri": "guard.jsonl", "pinned": "guard@1", "digest": "of guard"}
        assert found["sources"]["guard"] == guard
        assert found["sources"]["harness_folder"]["digest"] == "of own"
        assert found["comparisons"] == {
            "judge": "wise",
            "preferred": 0.75,
            "wins": 10,
            "ties": 10,
            "losses": 0,
            "turned": 1,
            "unreadable": 2,
        }
        assert found["harness"] == {"ships": {"acc": 0.5}}
        assert found["baseline_harness"] == {"ships": {"acc": 0.25}}
        assert (found["guard_metrics"], found["baseline_guard_metrics"]) == (
            {"loss": 2.0},
            {"loss": 3.0},
        )
        json.dumps(found)

    def test_says_nothing_of_what_was_not_asked_for(self, candidate, store):
        found = provenance(candidate(), store)
        assert set(found) == {
            "schema_version",
            "recipe",
            "recipe_digest",
            "plan",
            "sources",
            "steps",
            "data_report",
            "metrics",
            "baseline_metrics",
            "verdict",
        }
        assert set(found["steps"]) == ALWAYS and set(found["sources"]) == {"data", "model"}


class TestTheCard:
    def test_tells_what_was_asked_beside_the_test_examples(self, candidate):
        card = model_card(candidate(**BESIDE))
        assert "`guard.jsonl` (digest `of guard`), 20 examples" in card
        assert "The judge `wise` preferred its answers 10 times" in card
        assert "| ships | acc | 0.2500 | 0.5000 | 9 |" in card

    def test_says_nothing_of_what_was_not_asked_for(self, candidate):
        card = model_card(candidate())
        assert "judge" not in card.split("## Data")[0] and "Harness" not in card
