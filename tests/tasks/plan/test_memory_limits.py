"""How much memory training may use."""

from tasks.plan.memory_limits import memory_limits


class TestMemoryLimits:
    def test_leave_a_reserve_of_this_machine(self):
        limits = memory_limits("cpu", 0)
        assert limits.memory > limits.reserve > 0
        assert (limits.host_memory, limits.host_reserve) == (limits.memory, limits.reserve)

    def test_of_a_declared_card_are_of_that_card(self):
        limits = memory_limits("cuda", 1.2)
        assert limits.memory == 1_200_000_000
        assert limits.host_memory == memory_limits("cpu", 0).memory
