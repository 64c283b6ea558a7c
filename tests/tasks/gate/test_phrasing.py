"""Numbers and counts in sentences."""

import pytest

from tasks.gate import phrasing
from tasks.gate.phrasing import MetricPhrasing


class TestNumber:
    @pytest.mark.parametrize(
        ("value", "text"), [(0.5, "0.500"), (-0.5, "−0.500"), (0.00004, "0.00004"), (0.0, "0.000")]
    )
    def test_small_values_have_more_decimals(self, value, text):
        assert phrasing.number(value) == text

    @pytest.mark.parametrize(("value", "text"), [(0.25, "+0.250"), (-0.25, "−0.250")])
    def test_signed_always_has_a_sign(self, value, text):
        assert phrasing.signed(value) == text

    def test_distinct_values_never_look_equal(self):
        assert phrasing.distinct(0.89996, 0.9) == ("0.89996", "0.9")
        assert phrasing.distinct(0.9, 0.9) == ("0.900", "0.9")


class TestCounts:
    def test_nouns_have_a_plural(self):
        assert phrasing.count(1, "example") == "1 example"
        assert phrasing.count(0, "example") == "0 examples"

    def test_lists_are_cut_after_five_names(self):
        assert phrasing.listed(list("abcdefg")) == "a, b, c, d, e and 2 more"

    def test_excluded_examples_are_stated_only_if_there_are_any(self):
        assert phrasing.excluded(0) == ""
        assert phrasing.excluded(1).startswith(" 1 was excluded")


class TestMetricPhrasing:
    def test_relative_differences_are_percentages(self):
        perplexity = MetricPhrasing("perplexity", lower_is_better=True, relative=True)
        assert perplexity.difference(0.02) == "+2.000%"
        assert perplexity.margin(0.02) == "2%"
        assert (perplexity.gain, perplexity.setback) == ("fall", "rise")

    def test_other_differences_have_the_metrics_unit(self):
        loss = MetricPhrasing("loss", " nats per token", lower_is_better=True)
        assert loss.margin(0.05) == "0.05 nats per token"
        assert loss.title == "Loss"
