"""Metrics of predicted classes."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from tasks.training.classification_metrics import classification_metrics


class TestClassificationMetrics:
    @pytest.mark.parametrize("kind", [np.int64, str, object])
    def test_numbers_and_strings_are_classes(self, kind):
        truth, predicted = np.array([0, 0, 10, 2]), np.array([0, 10, 10, 2])
        if kind is not np.int64:
            truth, predicted = truth.astype(str).astype(kind), predicted.astype(str).astype(kind)
        found = classification_metrics(truth, predicted)
        assert found["accuracy"] == 0.75
        assert found["recall"] == pytest.approx((1 / 2 + 1 + 1) / 3)

    def test_averages_are_over_the_classes_in_truth(self):
        truth, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
        options = {"labels": [0, 1], "average": "macro", "zero_division": 0}
        assert classification_metrics(truth, predicted) == {
            "accuracy": pytest.approx(2 / 3),
            "precision": precision_score(truth, predicted, **options),
            "recall": recall_score(truth, predicted, **options),
            "f1": f1_score(truth, predicted, **options),
        }
