"""Evidence that cannot be used rejects, with the reason."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.gate import (
    classification,
)
from tests.tasks.evaluate.samples import label_table
from tests.tasks.gate.samples import (
    decide_on,
    label_evidence,
    paired_labels,
    paired_outcomes,
    reasons,
)


class TestTables:
    @pytest.mark.parametrize("column", classification.COLUMNS)
    @pytest.mark.parametrize("model", ["candidate", "baseline"])
    def test_missing_column_rejects(self, model, column):
        found = paired_labels(gained=60, both=540)
        broken = getattr(found, model).drop_columns([column])
        assert column in reasons(decide_on(dataclasses.replace(found, **{model: broken})))

    @pytest.mark.parametrize("column", [c for c in classification.COLUMNS if c != "loss"])
    def test_empty_value_rejects(self, column):
        found = paired_labels(gained=60, both=540)
        place = found.candidate.column_names.index(column)
        values = [None, *found.candidate.column(column).to_pylist()[1:]]
        kind = found.candidate.schema.field(column).type
        broken = found.candidate.set_column(place, column, pa.array(values, kind))
        text = reasons(decide_on(dataclasses.replace(found, candidate=broken)))
        assert f"empty values in {column}" in text

    def test_column_of_the_wrong_type_rejects(self):
        found = paired_labels(gained=60, both=540)
        broken = found.candidate.set_column(5, "loss", pa.array(["low"] * 600))
        text = reasons(decide_on(dataclasses.replace(found, candidate=broken)))
        assert "wrong type: loss" in text

    def test_empty_test_set_rejects(self):
        found = paired_labels()
        assert "the test set is empty" in reasons(decide_on(found))

    def test_two_answers_to_one_example_reject(self):
        found = paired_labels(gained=60, both=540)
        twice = pa.concat_tables([found.candidate, found.candidate.slice(0, 3)])
        text = reasons(decide_on(dataclasses.replace(found, candidate=twice)))
        assert "more than one answer to 3 test examples" in text

    def test_missing_slice_column_rejects(self):
        assert "author" in reasons(
            decide_on(paired_labels(gained=60, both=540), slices=("author",))
        )

    def test_empty_slice_column_rejects(self):
        right, other = paired_outcomes(gained=60, both=540)
        empty = label_table(right, author=pa.array([None] * 600, pa.string()))
        text = reasons(decide_on(label_evidence(empty, label_table(other)), slices=("author",)))
        assert "slice column author is empty" in text


class TestBothModels:
    def test_missing_baseline_rejects(self):
        found = dataclasses.replace(paired_labels(gained=60, both=540), baseline=None)
        assert "answers of the baseline (release 7) are missing" in reasons(decide_on(found))

    def test_unexpected_baseline_rejects(self):
        found = paired_labels(gained=60, both=540)
        rules = GateRecipe(floors={"accuracy": 0.1})
        assert "without a baseline" in reasons(decide_on(found, rules, baseline="none"))

    @pytest.mark.parametrize("model", ["candidate", "baseline"])
    def test_example_that_only_one_model_answered_rejects(self, model):
        found = paired_labels(gained=60, both=540)
        broken = dataclasses.replace(found, **{model: getattr(found, model).slice(0, 599)})
        assert f"The {model} has no answer to 1 test example." in reasons(decide_on(broken))

    def test_baseline_with_unknown_labels_rejects(self):
        found = paired_labels({"baseline_labels": None}, gained=60, both=540)
        assert "labels that the baseline can predict are unknown" in reasons(decide_on(found))

    def test_hashes_that_are_not_pairs_reject(self):
        found = paired_labels({"candidate_seen": np.zeros(5, np.uint64)}, gained=60, both=540)
        assert "inputs that the candidate saw does not hold pairs of hashes" in reasons(
            decide_on(found)
        )


class TestMetrics:
    @pytest.mark.parametrize("rules", [{"metric": "rouge_l"}, {"floors": {"rouge_l": 0.5}}])
    def test_that_the_task_does_not_have_reject(self, rules):
        found = paired_labels(both=600)
        why = reasons(decide_on(found, GateRecipe(**rules)))
        assert "A model for text-classification has no rouge_l" in why
        assert "accuracy, precision, recall, f1" in why

    @pytest.mark.parametrize("confidence", [0.6, 0.999])
    @pytest.mark.parametrize("metric", ["accuracy", "f1"])
    def test_are_tested_at_the_bounds_of_the_confidence(self, metric, confidence):
        rules = GateRecipe(metric=metric, confidence=confidence, looks=1000)
        found = paired_labels(gained=10, lost=10, both=580)
        assert decide_on(found, rules, looks=2.0).outcome == "rejected"
