"""The gate step: from artifacts in the store to a stored verdict."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.results import Comparisons, Scored
from tasks.gate.step import GateInputs, gate
from tasks.storage.store import open_store
from tests.tasks.evaluate.samples import LABELS, N, label_table, score_table
from tests.tasks.gate.samples import hashes_of, rule
from tests.tasks.samples import run_context


@pytest.fixture
def store(tmp_path):
    return open_store(run_context(tmp_path).store)


@pytest.fixture
def put_table(store):
    """Stores a table as an artifact."""

    def put(kind, table):
        with store.scratch() as scratch:
            folder = scratch / kind
            folder.mkdir()
            pq.write_table(table, folder / f"{kind}.parquet")
            return store.put(kind, folder)

    return put


@pytest.fixture
def put_seen(store):
    """Stores the hashes of seen rows as an artifact."""

    def put(*rows):
        with store.scratch() as scratch:
            folder = scratch / "dataset"
            folder.mkdir()
            np.save(folder / "seen.npy", hashes_of(*rows))
            return store.put("dataset", folder)

    return put


def scored(artifact, digest, labels=()):
    return Scored(
        artifact=artifact, model_digest=digest * 64, labels=labels, metrics={}, size_bytes=1
    )


@pytest.fixture
def decide_between(tmp_path, put_table, put_seen, store):
    """Runs the step on two score tables; returns its result and the stored verdict."""

    def run(candidate, baseline, labels=(), **changes):
        inputs = {
            "candidate": scored(put_table("scores", candidate), "c", labels),
            "baseline": scored(put_table("scores", baseline), "b", labels),
            "baseline_name": "release 7",
            "baseline_entry": 7,
            "candidate_seen": put_seen(0, 1),
            "baseline_seen": None,
            "rules": GateRecipe(),
            "slices": (),
            "test_digest": "t",
            "look_number": 1,
        }
        result = gate.work(GateInputs(**inputs | changes), run_context(tmp_path))
        return result, json.loads(store.file(result.artifact, "verdict.json").read_text())

    return run


class TestGate:
    def test_verdict_is_stored_as_json(self, decide_between):
        table = label_table(np.ones(N, bool))
        result, stored = decide_between(table, table, LABELS)
        assert result.verdict.outcome == stored["outcome"] == "promoted"
        assert (result.verdict.examples, result.verdict.dropped) == (N - 2, 2)
        assert (result.verdict.candidate_digest, result.verdict.baseline_digest) == (
            "c" * 64,
            "b" * 64,
        )

    def test_comparisons_of_the_llm_judge_are_added_to_the_scores(self, decide_between, put_table):
        compared = pa.table(
            {
                "hash_hi": pa.array(np.arange(N, dtype=np.uint64)),
                "hash_lo": pa.array(np.arange(N, dtype=np.uint64) * 7),
                "preferred": np.ones(N),
            }
        )
        comparisons = Comparisons(
            artifact=put_table("comparisons", compared),
            llm_judge="wise",
            preferred=1.0,
            wins=N,
            ties=0,
            losses=0,
            inconsistent=0,
            unreadable=0,
        )
        result, _ = decide_between(
            score_table(),
            score_table(),
            task="instruction",
            rules=GateRecipe(metric="preferred", claim="better"),
            comparisons=comparisons,
        )
        assert rule(result.verdict, "better").discordant == (N - 2, 0)

    def test_a_gguf_file_counts_towards_the_size(self, decide_between):
        table = label_table(np.ones(N, bool))
        rules = GateRecipe(max_size_mb=2)
        for gguf_bytes, passed in ((10**6, True), (2 * 10**6, False)):
            result, _ = decide_between(table, table, LABELS, rules=rules, gguf_bytes=gguf_bytes)
            assert rule(result.verdict, "budget").passed == passed

    def test_guard_set_is_part_of_the_verdict(self, decide_between, put_table):
        result, _ = decide_between(
            score_table(),
            score_table(),
            task="instruction",
            guard_candidate=scored(put_table("scores", score_table(np.full(N, 3.0))), "c"),
            guard_baseline=scored(put_table("scores", score_table()), "b"),
        )
        assert not rule(result.verdict, "no harm", "guard set").passed
        assert result.verdict.outcome == "rejected"
