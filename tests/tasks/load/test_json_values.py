"""JSON keeps the exact values of the data, and says where it is malformed."""

from __future__ import annotations

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.load.json_values import (
    content_json,
    describe_json_error,
    identity_json,
    parse_json,
)

BIG = 18446744073709551617
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


class TestExactValues:
    @pytest.mark.parametrize("number", [BIG, -BIG, 2**64, 2**63, 10**30])
    def test_big_integers_stay_integers(self, number):
        for text in (f'{{"id": {number}}}', f'{{"id": {number}}}'.encode()):
            assert parse_json(text) == {"id": number}
        assert content_json({"id": number}) == f'{{"id":{number}}}'

    @given(VALUES)
    def test_content_reads_as_the_same_value(self, value):
        found = parse_json(content_json(value))
        assert found == value
        assert repr(found) == repr(value)  # Order of keys, and 1 against 1.0.

    def test_content_keeps_the_order_of_keys_and_identity_does_not(self):
        one, other = {"reason": "asked", "hour": 8}, {"hour": 8, "reason": "asked"}
        assert content_json(one) != content_json(other)
        assert identity_json(one) == identity_json(other)
        big = {"b": BIG, "a": 1}
        assert content_json(big).startswith('{"b"') and identity_json(big).startswith('{"a"')

    @pytest.mark.parametrize("value", [{"a": b"x"}, {"a": object()}, {"a": "\ud800"}])
    def test_what_json_cannot_hold_is_an_error(self, value):
        with pytest.raises((TypeError, ValueError)):
            content_json(value)

    def test_nan_beside_a_big_integer_is_an_error(self):
        with pytest.raises(ValueError):
            content_json([BIG, math.nan])


class TestMalformed:
    def describe(self, text):
        with pytest.raises(orjson.JSONDecodeError) as caught:
            parse_json(text)
        return describe_json_error(text, caught.value)

    @pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
    def test_a_constant_is_named_with_its_place(self, name):
        text = f'{{"text": "{"long " * 20}", "score": {name}}}'
        found, fix = self.describe(text)
        assert found.startswith(f"{name}, which JSON does not have, at character")
        assert '"score"' in found and fix == "write null, or a number"

    def test_the_excerpt_is_around_the_fault(self):
        found, _ = self.describe('{"text": "' + "x" * 200 + '", "label": tru, "more": "' + "y" * 99)
        assert "tru," in found and found.count("…") == 2
