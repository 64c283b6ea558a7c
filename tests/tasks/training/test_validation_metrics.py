"""Metrics of the validation split."""

import socket

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from tasks.training.validation_metrics import ClassificationMetrics


class TestMetrics:
    def test_equal_those_of_scikit_learn_and_need_no_network(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("the network was asked")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        truth, guess = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
        found = ClassificationMetrics(tmp_path).compute(predictions=guess, references=truth)
        assert found == {
            "accuracy": pytest.approx(4 / 6),
            "precision": sklearn_metrics.precision_score(truth, guess, average="macro"),
            "recall": sklearn_metrics.recall_score(truth, guess, average="macro"),
            "f1": sklearn_metrics.f1_score(truth, guess, average="macro"),
        }

    def test_count_a_class_that_is_never_predicted_as_0(self, tmp_path):
        found = ClassificationMetrics(tmp_path).compute(
            predictions=np.array([0, 0]), references=np.array([0, 1])
        )
        assert found["recall"] == 0.5
        assert found["precision"] == 0.25
