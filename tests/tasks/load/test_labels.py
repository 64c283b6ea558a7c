"""Labels: which values become one, which are the same in another spelling, which are numbers."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from tasks.contracts.errors import BadData
from tasks.load.labels import is_fraction, label_of, normal_label, renamed_label, spellings


class TestLabelOf:
    @pytest.mark.parametrize(
        ("value", "label"),
        [
            (" spam ", "spam"),
            (True, "true"),
            (3, "3"),
            (18446744073709551617, "18446744073709551617"),
            (1.0, "1"),
            (-0.0, "0"),
            (-0.25, "-0.25"),
        ],
    )
    def test_is_the_value_as_text(self, value, label):
        assert label_of(value, "label", "a.csv:2") == label

    @pytest.mark.parametrize("value", [None, "", "  ", math.nan])
    def test_an_empty_value_is_refused(self, value):
        with pytest.raises(BadData, match=r"a.csv:2: found no label in 'class'"):
            label_of(value, "class", "a.csv:2")

    @pytest.mark.parametrize("value", [["a"], {"a": 1}])
    def test_a_value_of_another_type_is_refused(self, value):
        with pytest.raises(BadData, match="as label in 'class'"):
            label_of(value, "class", "a.csv:2")


class TestSpellings:
    @pytest.mark.parametrize(
        "group",
        [
            ["NEGATIVE", "Negative", "negative"],
            ["not spam", "not  spam"],
            ["é", "e\u0301"],
            ["1", "1.0", "1.00"],
            ["-0.0", "0"],
            ["True", "true"],
            ["ＡＢＣ", "abc"],
        ],
    )
    def test_of_one_label_are_found(self, group):
        assert spellings([*group, "another"]) == [sorted(group)]
        assert len({normal_label(label) for label in group}) == 1

    @pytest.mark.parametrize(
        "labels", [["007", "7"], ["1.5", "15"], ["a", "b"], ["yes", "true"], ["0", "o"]]
    )
    def test_of_different_labels_are_not_merged(self, labels):
        assert spellings(labels) == []


class TestRenamedLabel:
    def test_the_map_applies_to_exact_labels(self):
        names = {"neg": "negative"}
        assert renamed_label("neg", names, False) == "negative"
        assert renamed_label("NEG", names, False) == "NEG"

    def test_with_normalizing_the_maps_keys_are_normalized_too(self):
        assert renamed_label(" Neg", {"NEG": "negative"}, True) == "negative"
        assert renamed_label("Positive", {}, True) == "positive"


class TestFractions:
    @pytest.mark.parametrize("label", ["-0.25", "3.5", ".5", "1e-3", "+2.75"])
    def test_are_numbers_that_are_not_whole(self, label):
        assert is_fraction(label)

    @pytest.mark.parametrize("label", ["1", "1.0", "-0.0", "1e3", "v1.5", "1.5.2", "nan", "", "."])
    def test_are_nothing_else(self, label):
        assert not is_fraction(label)


def test_a_decimal_is_no_label():
    with pytest.raises(BadData):
        label_of(Decimal("1.5"), "label", "a.parquet:1")
