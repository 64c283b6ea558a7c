"""Contracts: immutable, strict, and a cache key of the fields that decide a result."""

from __future__ import annotations

import math

import pytest
from pydantic import Field, ValidationError

from tasks.contracts.base import Contract, digest_of


class Inner(Contract):
    cache_key_excludes = frozenset({"location"})

    name: str
    location: str = ""


class Outer(Contract):
    inner: Inner
    by_name: dict[str, Inner] = Field(default_factory=dict)
    value: float = 0.0


class TestContract:
    def test_refuses_unknown_fields_and_changes(self):
        with pytest.raises(ValidationError, match="Extra inputs"):
            Inner(name="a", nme="b")
        with pytest.raises(ValidationError, match="frozen"):
            Inner(name="a").name = "b"

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_numbers_that_json_lacks_survive_it(self, value):
        text = Outer(inner=Inner(name="a"), value=value).model_dump_json()
        found = Outer.model_validate_json(text).value
        assert found == value or (math.isnan(found) and math.isnan(value))


class TestKeys:
    def test_leave_out_excluded_fields_at_every_depth(self):
        here, there = (Inner(name="a", location=place) for place in ("/here", "/there"))
        one = Outer(inner=here, by_name={"x": here})
        other = Outer(inner=there, by_name={"x": there})
        assert digest_of(one) == digest_of(other)
        assert digest_of(one) != digest_of(Outer(inner=Inner(name="b")))

    def test_do_not_depend_on_the_order_of_keys(self):
        assert digest_of({"a": 1, "b": [2, 3]}) == digest_of({"b": [2, 3], "a": 1})
        assert digest_of([1, 2]) != digest_of([2, 1])
