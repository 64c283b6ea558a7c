"""Faults are tried on the same places that the flows' tests use."""

from tests.flows.conftest import empty_place, first_release, place

__all__ = ["empty_place", "first_release", "place"]
