"""How often a test set has been looked at."""

import numpy as np
import pytest

from tasks.contracts.artifacts import Artifact
from tasks.contracts.results import Scored
from tasks.release.looks import Look, count_look, earlier_scores
from tasks.storage.store import open_store
from tests.tasks.release.conftest import MADE
from tests.tasks.samples import run_context


@pytest.fixture
def store(tmp_path):
    return open_store(run_context(tmp_path).store)


def rows(first, last):
    numbers = np.arange(first, last, dtype=np.uint64)
    return np.stack([numbers, numbers], axis=1)


def look(store, candidate, test="t", of=None, baseline="base"):
    found = rows(0, 100) if of is None else of
    return count_look(store, "news", test, found, scored(candidate), baseline)


def scored(model):
    artifact = Artifact(kind="scores", digest=f"scores of {model}", files=1, bytes=1, uri="")
    return Scored(
        artifact=artifact,
        key="k",
        provenance=MADE,
        model_digest=model,
        labels=(),
        metrics={},
        size_bytes=1,
    )


class TestCountLook:
    def test_each_new_comparison_is_counted_and_a_repeat_is_not(self, store):
        counted = [look(store, candidate) for candidate in "abac"]
        assert counted == [Look(1, 1), Look(2, 2), Look(1, 1), Look(3, 3)]

    def test_a_test_set_with_one_more_row_does_not_begin_anew(self, store):
        look(store, "a")
        look(store, "b")
        assert look(store, "c", "u", rows(0, 101)) == Look(1, round(1 + 2 * 100 / 101, 2))

    def test_fresh_rows_count_for_what_they_are(self, store):
        look(store, "a")
        assert look(store, "b", "u", rows(50, 250)).looks == 1 + 50 / 200
        assert look(store, "c", "v", rows(1000, 1100)).looks == 1
        # Of each earlier verdict, the share of today's rows that it used.
        assert look(store, "d", "w", rows(0, 100)).looks == 1 + 1 + 0.5

    def test_a_repeat_says_what_it_said_then(self, store):
        look(store, "a")
        first = look(store, "b", "u", rows(50, 150))
        look(store, "c", "v", rows(50, 150))
        assert look(store, "b", "u", rows(50, 150)) == first

    def test_another_model_has_looks_of_its_own(self, store):
        look(store, "a")
        assert count_look(store, "other", "t", rows(0, 100), scored("a"), "base") == Look(1, 1)

    def test_records_of_an_older_version_count_in_full(self, store):
        store.objects.create("looks/news/t/00000001.json", b"0" * 64)
        assert look(store, "a", "u").looks == 2
        assert look(store, "b", "t") == Look(2, 2 + 1)


class TestEarlierScores:
    def test_are_those_of_each_candidate(self, store):
        for candidate in "aba":
            look(store, candidate)
        look(store, "c", "u", rows(50, 150))
        store.objects.create("looks/news/v/00000001.json", b"0" * 64)
        found = {model: each.digest for model, each in earlier_scores(store, "news", 9).items()}
        assert found == {"c": "scores of c", "a": "scores of a", "b": "scores of b"}
        assert list(earlier_scores(store, "news", 2)) == ["b", "a"]
        # However old, what is deployed is found.
        assert list(earlier_scores(store, "news", 1, ["c"])) == ["b", "c"]
