"""The memory tracker: which storages exist at once, and what they are for."""

import torch

from tasks.plan.memory_tracker import ACTIVATIONS, TRANSIENT, MemoryTracker


def total(parts):
    return sum(parts.values())


class TestMemoryTracker:
    def test_sums_what_exists_at_once(self):
        tracker = MemoryTracker()
        with tracker:
            tracker.begin("forward")
            kept = torch.ones(100)
            passing = [torch.ones(1000) for _ in range(2)]
            passing.pop()
            del passing
            tracker.begin("backward")
            torch.ones(10)
        peaks = tracker.peaks("forward", "backward")
        assert peaks["forward"] == {ACTIVATIONS: 400, TRANSIENT: 8000}
        assert total(peaks["backward"]) <= 400 + 40
        del kept

    def test_counts_a_storage_once_whatever_views_it_has(self):
        tracker = MemoryTracker()
        with tracker:
            tracker.begin("forward")
            one = torch.ones(8, 8)
            views = [one.t(), one.view(-1), one[2:]]
            tracker.begin("backward")
        assert tracker.peaks("forward", "backward")["forward"] == {ACTIVATIONS: 256}
        del views

    def test_adds_the_workspace_of_kernels(self):
        def space(_):
            return 10_000

        tracker = MemoryTracker({torch.ops.aten.mm.default: space})
        with tracker:
            tracker.begin("forward")
            torch.mm(torch.ones(4, 4), torch.ones(4, 4))
            tracker.begin("backward")
        assert total(tracker.peaks("forward", "backward")["forward"]) == 10_000 + 3 * 64
