"""The forecast: when the training program must give memory back at once."""

import pytest

from tasks.contracts.forecast import must_be_tight
from tests.tasks.plan.conftest import forecast_of


class TestTightMemory:
    @pytest.mark.parametrize(
        ("device", "merge_memory", "tight"),
        # Training takes 26 GB: 65 with all that glibc may keep.
        [("cpu", 0, True), ("cuda", 0, False), ("cuda", 23 * 10**9, False), ("cuda", 25e9, True)],
    )
    def test_is_needed_if_the_machine_is_short_of_it(self, device, merge_memory, tight):
        host = {"host_memory": 64 * 10**9, "host_reserve": 4 * 10**9}
        found = forecast_of(device=device, merge_host_memory=int(merge_memory), **host)
        assert must_be_tight(found) is tight

    def test_is_not_needed_if_the_machine_is_unknown(self):
        assert not must_be_tight(forecast_of(device="cpu"))
