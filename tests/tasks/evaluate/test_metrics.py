"""Metrics computed from score tables."""

import math

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from tasks.contracts.errors import BadData
from tasks.evaluate import metrics
from tests.tasks.evaluate.samples import label_table, score_table


class TestClassification:
    def test_macro_averages_are_over_the_labels_in_truth(self):
        truth = ["a", "a", "b", "b", "b"]
        predicted = ["a", "z", "b", "b", "a"]
        found = metrics.metrics_of(
            label_table([True, False, True, True, False], labels=truth, predicted=predicted)
        )
        options = {"labels": ["a", "b"], "average": "macro", "zero_division": 0}
        assert found == pytest.approx(
            {
                "accuracy": accuracy_score(truth, predicted),
                "precision": precision_score(truth, predicted, **options),
                "recall": recall_score(truth, predicted, **options),
                "f1": f1_score(truth, predicted, **options),
                "loss": (3 * 0.1 + 2 * 2.0) / 5,
            }
        )
        assert found["recall"] == pytest.approx((1 / 2 + 2 / 3) / 2)

    def test_loss_that_is_not_a_number_gives_nan(self):
        broken = label_table([True, False]).set_column(5, "loss", pa.array([0.1, np.nan]))
        assert np.isnan(metrics.metrics_of(broken)["loss"])

    def test_empty_table_is_refused(self):
        with pytest.raises(BadData, match="no examples"):
            metrics.metrics_of(label_table([]))


class TestLanguage:
    def test_loss_is_weighted_by_tokens_and_other_metrics_by_examples(self):
        found = metrics.metrics_of(
            score_table(
                [1.0, 3.0], 2, [1, 3], rouge_l=[0.2, 0.4], checks=pa.nulls(2, pa.float64())
            ),
            "completion",
        )
        assert found == pytest.approx({"loss": 2.5, "perplexity": math.exp(2.5), "rouge_l": 0.3})

    def test_loss_of_preferences_is_the_mean_over_inputs(self):
        found = metrics.metrics_of(
            score_table([1.0, 3.0], 2, [1, 3], accuracy=[1.0, 0.5], rouge_l=[0.0, 1.0]),
            "preference",
        )
        assert found == pytest.approx({"accuracy": 0.75, "loss": 2.0, "rouge_l": 0.5})

    def test_empty_table_is_refused(self):
        with pytest.raises(BadData, match="no examples"):
            metrics.metrics_of(score_table(n=0), "completion")
