"""Sentences of the report's table of steps."""

from tasks.contracts.artifacts import Artifact
from tasks.contracts.results import Finetuned, Loaded, Provenance
from tasks.report.summaries import finetune_sentence, load_sentence

ARTIFACT = Artifact(kind="k", digest="d", files=1, bytes=1, uri="")


class TestLoadSentence:
    def test_counts_new_shards_only_in_the_run_that_read_them(self):
        provenance = Provenance(
            run_id="1", run_name="one", at="now", seconds=1.0, libraries={}, code="c"
        )
        loaded = Loaded(
            artifact=ARTIFACT,
            provenance=provenance,
            labels=(),
            rows={"train": 1000, "test": 20},
            test_digest="t",
            new_shards=2,
            shards=3,
        )
        assert load_sentence(loaded, "1") == "1,000 train, 20 test; 2 of 3 shards newly read"
        assert load_sentence(loaded, "2") == "1,000 train, 20 test; 0 of 3 shards newly read"


class TestFinetuneSentence:
    def test_shows_the_accuracy_of_a_classifier_and_the_loss_of_a_language_model(self):
        facts = {"history": (), "best_epoch": 2.0, "steps": 9, "trained_parameters": 1}
        for metrics, shown in (
            ({"accuracy": 0.9, "f1": 0.8, "loss": 1.0}, "accuracy 0.9000"),
            ({"loss": 1.25}, "loss 1.2500"),
        ):
            finetuned = Finetuned(artifact=ARTIFACT, metrics=metrics, **facts)
            assert finetune_sentence(finetuned) == f"9 steps, validation {shown}, best epoch 2"
