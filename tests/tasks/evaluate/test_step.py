"""The evaluate step."""

from tasks.contracts.artifacts import Artifact, Source
from tasks.evaluate.step import ScoreInputs, model_digest

ARTIFACT = Artifact(kind="model", digest="d" * 64, files=1, bytes=1, uri="")
BASE = Source(uri="/base", pinned="/base", digest="b" * 64, files=())


def inputs(**changes) -> ScoreInputs:
    fields = {
        "kind": "untrained",
        "model": None,
        "base": BASE,
        "quantization": "none",
        "labels": ("a", "b"),
        "seed": 1,
        "test_digest": "t",
        "dataset": ARTIFACT,
        "hardware": "",
        "batch_size": 4,
        "device": "cpu",
    }
    return ScoreInputs(**fields | changes)


class TestModelDigest:
    def test_is_that_of_a_released_model(self):
        assert model_digest(inputs(kind="merged", model=ARTIFACT)) == ARTIFACT.digest

    def test_untrained_classifiers_differ_by_labels_and_seed(self):
        digests = {
            model_digest(inputs(**changes))
            for changes in ({}, {"seed": 2}, {"labels": ("a", "c")}, {"batch_size": 9})
        }
        assert len(digests) == 3

    def test_untrained_language_models_differ_by_their_base_alone(self):
        other = BASE.model_copy(update={"digest": "c" * 64})
        first, second, third = (
            model_digest(inputs(task="completion", **changes))
            for changes in ({}, {"seed": 2}, {"base": other})
        )
        assert first == second != third
