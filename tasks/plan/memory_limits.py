"""How much memory training may use."""

from __future__ import annotations

import math

from tasks.contracts.base import Contract
from tasks.contracts.machine import Machine
from tasks.runtime.hardware import GB

# By device: a fixed number of bytes, and a share of all memory. On a GPU they are for the driver's
# context and for the allocator's fragmentation: usual figures, not measured ones. On a CPU they are
# for this process and for the program before it reads the model (together 0.55 GB, measured), and
# for everything else that the machine does.
_RESERVES = {"cuda": (600 * 10**6, 0.05), "cpu": (10**9, 0.10)}


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


def memory_limits(machine: Machine, declared_gb: float) -> MemoryLimits:
    """The memory of a machine and its device.

    It is all there is, not what is free: what else runs at the moment must not change how a model
    is trained.

    Args:
        machine: That trains.
        declared_gb: The device's memory as the recipe says it, in units of 10^9 bytes; 0: as found.
    """
    device = machine.device
    memory = round(declared_gb * GB) or machine.memory
    host = memory if device == "cpu" else machine.host_memory
    return MemoryLimits(
        memory=memory,
        reserve=reserve_of(device, memory),
        host_memory=host,
        host_reserve=reserve_of("cpu", host),
    )


def reserve_of(device: str, memory: int) -> int:
    """The part of a device's memory that training leaves alone, in bytes.

    Args:
        device: `cpu` or `cuda`.
        memory: All of it, in bytes; 0 if unknown.
    """
    fixed, share = _RESERVES[device]
    return fixed + round(share * memory) if memory else 0


def memory_for(peak: int, device: str) -> int:
    """The memory that a device must have for a training run with this peak, in bytes.

    Args:
        peak: Memory in use at the fullest moment of training, in bytes.
        device: `cpu` or `cuda`.
    """
    fixed, share = _RESERVES[device]
    return math.ceil((peak + fixed) / (1 - share))
