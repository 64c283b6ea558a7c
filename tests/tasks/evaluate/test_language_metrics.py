"""A language model's metrics are means over its score table, per token where they are rates."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from tasks.evaluate.language_metrics import language_metrics, value_of
from tests.tasks.evaluate.samples import score_table

LOSS, TOKENS = np.array([1.0, 2.0, 4.0]), np.array([10, 1, 1])


class TestLanguageMetrics:
    def test_loss_is_per_token_and_perplexity_its_exponential(self):
        found = language_metrics(score_table(LOSS, n=3, tokens=TOKENS), "completion")
        assert found["loss"] == pytest.approx(16 / 12)
        assert found["perplexity"] == pytest.approx(math.exp(16 / 12))

    def test_a_preference_counts_every_input_alike(self):
        table = score_table(LOSS, n=3, tokens=TOKENS, accuracy=[1.0, 0.0, 1.0])
        found = language_metrics(table, "preference")
        assert found["loss"] == pytest.approx(7 / 3)
        assert found["accuracy"] == pytest.approx(2 / 3)
        assert "perplexity" not in found

    def test_a_column_without_values_is_no_metric(self):
        empty = pa.array([None] * 3, pa.float64())
        table = score_table(LOSS, n=3).append_column("checks", empty)
        assert "checks" not in language_metrics(table, "instruction")

    def test_a_nan_shows(self):
        assert math.isnan(language_metrics(score_table([1.0, math.nan], n=2), "completion")["loss"])


class TestValueOf:
    def test_a_perplexity_that_overflows_is_infinite(self):
        assert value_of("perplexity", np.array([1e4]), np.ones(1)) == math.inf
