"""How much memory training may use."""

import pytest

from tasks.plan.memory_limits import memory_for, memory_limits, reserve_of
from tests.tasks.plan.conftest import gpu_machine, machine


class TestMemoryLimits:
    def test_leave_a_reserve_of_a_machine(self):
        limits = memory_limits(machine(), 0)
        assert limits.memory == 16 * 10**9 and limits.memory > limits.reserve > 0
        assert (limits.host_memory, limits.host_reserve) == (limits.memory, limits.reserve)

    def test_of_a_card_leave_a_reserve_of_both(self):
        limits = memory_limits(gpu_machine(), 0)
        assert (limits.memory, limits.host_memory) == (24 * 10**9, 16 * 10**9)

    def test_of_a_declared_card_are_of_that_card(self):
        limits = memory_limits(gpu_machine(), 1.2)
        assert limits.memory == 1_200_000_000
        assert limits.host_memory == memory_limits(machine(), 0).memory


class TestReserves:
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_memory_for_a_peak_leaves_that_peak_after_the_reserve(self, device):
        peak = 7_000_000_001
        memory = memory_for(peak, device)
        assert memory - reserve_of(device, memory) == pytest.approx(peak, abs=2)

    def test_nothing_is_reserved_of_unknown_memory(self):
        assert reserve_of("cuda", 0) == 0
