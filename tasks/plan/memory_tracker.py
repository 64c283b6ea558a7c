"""Tracks memory: when each storage was allocated and freed, how large it is, and what it is for.

A training step on torch's fake tensors, run under it, shows what the same step needs in reality:
every operation is the one that the real step runs, and the storage of every result is recorded.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ACTIVATIONS, TRANSIENT = "activations", "transient"
Workspace = Callable[[tuple[Any, ...]], int]


class Storage:
    """One allocation.

    Attributes:
        size: Bytes.
        allocated: Number of the operation that made it.
        freed: Number of the last operation during which it existed; None while it exists.
        part: What it is for; empty if that follows from when it was allocated and freed.
    """

    __slots__ = ("allocated", "freed", "part", "reference", "size")

    def __init__(self, size: int, allocated: int, part: str) -> None:
        self.size, self.allocated, self.part = size, allocated, part
        self.freed: int | None = None
        self.reference: Any = None


class MemoryTracker(TorchDispatchMode):
    """Records the memory of all operations that run within it.

    Args:
        workspaces: For operations whose kernels need memory while they run: a function from their
            arguments to its bytes.
    """

    def __init__(self, workspaces: dict[Any, Workspace] | None = None) -> None:
        super().__init__()
        self._workspaces = workspaces or {}
        self._now = 0
        self._live: dict[int, Storage] = {}
        self._all: list[Storage] = []
        self._phases: list[tuple[int, str]] = []

    def own(self, tensors: Iterable[torch.Tensor], part: str) -> None:
        """Assign tensors to a part, whether they were recorded before or not."""
        for tensor in tensors:
            self._record(tensor).part = part

    def begin(self, phase: str) -> None:
        """Begin a phase, which ends the one before."""
        self._phases.append((self._now + 1, phase))

    def peaks(self, kept_until: str, middle: str) -> dict[str, dict[str, int]]:
        """For each phase, the bytes of each part when their sum was greatest.

        Args:
            kept_until: Activations are what still exists at the end of this phase.
            middle: A phase that is split into two halves, "PHASE" and "PHASE, later".
        """
        starts = dict((name, start) for start, name in self._phases)
        order = [name for _, name in self._phases]
        after = order.index(kept_until) + 1
        kept = starts[order[after]] if after < len(order) else self._now + 1
        changes: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for each in self._all:
            part = each.part or self._part(each, kept)
            changes[each.allocated][part] += each.size
            if each.freed is not None:
                changes[each.freed + 1][part] -= each.size
        return self._greatest(changes, self._bounds(middle))

    def _part(self, storage: Storage, kept: int) -> str:
        stayed = storage.allocated < kept and (storage.freed is None or storage.freed >= kept)
        return ACTIVATIONS if stayed else TRANSIENT

    def _bounds(self, middle: str) -> list[tuple[int, str]]:
        ends = [start for start, _ in self._phases[1:]] + [self._now + 1]
        bounds = []
        for (start, name), end in zip(self._phases, ends, strict=True):
            bounds.append((start, name))
            if name == middle and (start + end) // 2 > start:
                bounds.append(((start + end) // 2, f"{name}, later"))
        return bounds

    def _greatest(
        self, changes: dict[int, dict[str, int]], bounds: list[tuple[int, str]]
    ) -> dict[str, dict[str, int]]:
        live: dict[str, int] = defaultdict(int)
        greatest: dict[str, dict[str, int]] = {}
        waiting, phase = list(bounds), "before"
        moments = sorted({*changes, *(start for start, _ in bounds)})
        for moment in moments:
            while waiting and waiting[0][0] <= moment:
                phase = waiting.pop(0)[1]
            for part, size in changes.get(moment, {}).items():
                live[part] += size
            if sum(live.values()) > sum(greatest.get(phase, {}).values()):
                greatest[phase] = dict(live)
        greatest.pop("before", None)
        return greatest

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return found
        self._now += 1
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor):
                self._record(tensor)
        if func in self._workspaces:
            workspace = Storage(self._workspaces[func](args), self._now, TRANSIENT)
            workspace.freed = self._now
            self._all.append(workspace)
        return found

    def _record(self, tensor: torch.Tensor) -> Storage:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._live.get(key)
        if known is not None:
            return known
        entry = Storage(storage.nbytes(), self._now, "")

        def freed(_: Any) -> None:
            entry.freed = self._now
            if self._live.get(key) is entry:
                del self._live[key]

        # Called when the memory is freed, and not before: torch keeps Python's view of it alive.
        entry.reference = weakref.ref(storage, freed)
        self._live[key] = entry
        self._all.append(entry)
        return entry
