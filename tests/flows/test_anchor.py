"""Retrains that each lose a little, within the margin: the anchor stops them."""

from __future__ import annotations

import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import score
from tasks.storage.store import open_store
from tests.flows.conftest import report_of, task_states

LOST_ROWS = 4
"""Of some 90 test rows, in each retrain."""


@pytest.fixture
def declining(monkeypatch, place):
    """Planted scores: each new model is wrong on a few rows more than the one before, which was
    right on the others."""
    real, models = score.score, [place.log()[-1].release.artifact.digest]

    def planted(inputs, context):
        scored = real(inputs, context)
        if scored.model_digest not in models:
            models.append(scored.model_digest)
        wrong = LOST_ROWS * models.index(scored.model_digest)
        store = open_store(context.store)
        table = pq.read_table(store.file(scored.artifact, "scores.parquet"))
        labels = table["label"].to_pylist()
        other = {label: next(each for each in labels if each != label) for label in set(labels)}
        answers = [other[each] for each in labels[:wrong]] + labels[wrong:]
        right = [False] * wrong + [True] * (len(labels) - wrong)
        for name, values in (("predicted", answers), ("correct", right)):
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values))
        with store.scratch() as scratch:
            (scratch / "scores").mkdir()
            pq.write_table(table, scratch / "scores" / "scores.parquet")
            artifact = store.put("scores", scratch / "scores")
        return scored.model_copy(update={"artifact": artifact})

    monkeypatch.setattr(score, "score", planted)


def retrain(place, number, **changes):
    return place.run(training__seed=number, gate__margin=0.12, training__epochs=1, **changes)


@pytest.mark.slow
class TestDecline:
    def test_is_stopped_at_the_anchor_and_the_report_says_so(self, place, declining):
        # The release that the place begins with is the anchor.
        (anchor,) = [entry.release for entry in place.log() if entry.kind == "deployed"]
        outcomes = []
        for number in range(2, 7):
            state = retrain(place, number)
            outcomes.append(state.name)
            # How a first release differs from its own baseline says nothing.
            assert ("**chance**" in report_of(state)) == (number > 2)
            if state.name == "Rejected":
                break
        assert outcomes[0] == "Released" and outcomes[-1] == "Rejected"
        report = report_of(state)
        assert f"for the anchor {anchor.version}: a drop of more than 0.12 cannot be" in report
        assert f"| anchor {anchor.version} |" in report
        # What is deployed was compared with the anchor, too.
        deployed = place.log()[-1].event.data.verdict
        assert (deployed.anchor.version, deployed.anchor.moves) == (anchor.version, "")
        # How likely it was to pass was said before it was trained.
        assert re.search(r"A candidate that is equally good passes the gate with [\w% ]+", report)
        # Against what is deployed alone, it would have been released.
        unanchored = retrain(place, number, gate__anchor="none")
        assert unanchored.name == "Released", unanchored.message
        assert place.log()[-1].event.data.verdict.anchor is None

    def test_an_anchor_that_is_gone_rejects_with_what_to_do(self, empty_place):
        # Not a copy of the shared place, whose releases are elsewhere.
        place = empty_place
        assert place.run(training__epochs=1).name == "Released"
        assert place.run(training__seed=2).name == "Released"
        (anchor, _) = [entry.release for entry in place.log() if entry.kind == "deployed"]
        place.store.discard("model", anchor.artifact.digest)
        for publication in anchor.publications:
            shutil.rmtree(publication.uri.removeprefix("file://"))
        state = place.run(training__seed=3)
        assert state.name == "Rejected"
        assert f"The anchor {anchor.version} cannot be restored" in state.message
        assert "set gate.anchor to a version that is there, or to none" in state.message

    def test_an_unknown_anchor_is_refused_before_anything_is_trained(self, place):
        state = place.run(gate__anchor="zzz", training__seed=5, training__epochs=1)
        assert state.name == "Bad recipe"
        assert place.log()[-1].release.version in state.message
        assert task_states(state) == {}
        state = place.run(gate__anchor="zzz", announce__channel="staging")
        assert "nothing is deployed on staging" in state.message
