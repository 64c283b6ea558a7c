"""How much memory training may use."""

from __future__ import annotations

from tasks.contracts.base import Contract
from tasks.runtime.hardware import found_memory, reserve_of


class MemoryLimits(Contract):
    """Memory in bytes; 0 if unknown.

    Attributes:
        memory: All of one device's.
        reserve: The part of it that training leaves alone.
        host_memory: All of the machine's, where the adapter is merged.
        host_reserve: The part of it that training leaves alone.
    """

    memory: int
    reserve: int
    host_memory: int
    host_reserve: int


def memory_limits(device: str, declared_gb: float) -> MemoryLimits:
    """The memory of this machine and its device.

    Args:
        device: `cpu` or `cuda`.
        declared_gb: The device's memory as the recipe says it, in units of 10^9 bytes; 0: as found.
    """
    memory = found_memory(device, declared_gb)
    host = memory if device == "cpu" else found_memory("cpu")
    return MemoryLimits(
        memory=memory,
        reserve=reserve_of(device, memory),
        host_memory=host,
        host_reserve=reserve_of("cpu", host),
    )
