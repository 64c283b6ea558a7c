"""A ledger of memory: what came when, how large it was, when it went, and what it was for.

Under it, a training step of a model without memory (on torch's fake tensors) tells what the same
step needs with memory: every operation is the one that the real step runs, and whatever an
operation gives is written down with the storage that it lies in.
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
    """One piece of memory.

    Attributes:
        size: Bytes.
        came: When: the number of the operation that made it.
        went: The number of the last operation during which it was there; None while it is.
        part: What it is for; empty where that follows from when it came and went.
    """

    __slots__ = ("came", "part", "reference", "size", "went")

    def __init__(self, size: int, came: int, part: str) -> None:
        self.size, self.came, self.part = size, came, part
        self.went: int | None = None
        self.reference: Any = None


class MemoryTracker(TorchDispatchMode):
    """Writes down the memory of all that runs within it.

    Args:
        workspaces: For operations whose real kernels need memory of their own for as long as they
            run: what gives its bytes for their arguments.
    """

    def __init__(self, workspaces: dict[Any, Workspace] | None = None) -> None:
        super().__init__()
        self._workspaces = workspaces or {}
        self._now = 0
        self._there: dict[int, Storage] = {}
        self._all: list[Storage] = []
        self._phases: list[tuple[int, str]] = []

    def own(self, tensors: Iterable[torch.Tensor], part: str) -> None:
        """Say what tensors are for, whether they were seen before or not."""
        for tensor in tensors:
            self._see(tensor).part = part

    def begin(self, phase: str) -> None:
        """Say that a phase begins: the one before ends."""
        self._phases.append((self._now + 1, phase))

    def peaks(self, kept_until: str, middle: str) -> dict[str, dict[str, int]]:
        """For each phase the bytes of each part when their sum was greatest.

        Args:
            kept_until: The phase at whose end activations are what is still there.
            middle: The phase that is told in two halves, "PHASE" and "PHASE, later".
        """
        starts = dict((name, start) for start, name in self._phases)
        order = [name for _, name in self._phases]
        after = order.index(kept_until) + 1
        kept = starts[order[after]] if after < len(order) else self._now + 1
        changes: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for each in self._all:
            part = each.part or self._part(each, kept)
            changes[each.came][part] += each.size
            if each.went is not None:
                changes[each.went + 1][part] -= each.size
        return self._greatest(changes, self._bounds(middle))

    def _part(self, storage: Storage, kept: int) -> str:
        stayed = storage.came < kept and (storage.went is None or storage.went >= kept)
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
                self._see(tensor)
        if func in self._workspaces:
            passing = Storage(self._workspaces[func](args), self._now, TRANSIENT)
            passing.went = self._now
            self._all.append(passing)
        return found

    def _see(self, tensor: torch.Tensor) -> Storage:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._there.get(key)
        if known is not None:
            return known
        entry = Storage(storage.nbytes(), self._now, "")

        def gone(_: Any) -> None:
            entry.went = self._now
            if self._there.get(key) is entry:
                del self._there[key]

        # Called when the memory goes, not when Python's view of it does: torch keeps the two one.
        entry.reference = weakref.ref(storage, gone)
        self._there[key] = entry
        self._all.append(entry)
        return entry
