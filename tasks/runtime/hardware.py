"""What the device that trains is, and how much memory it has. Asked without torch, which takes
seconds to import."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from pathlib import Path

GB = 10**9
# On a GPU: the driver's context, and gaps between what the allocator gives out; taken from what is
# usual, not measured. On a CPU: this process and the program before it reads the model (0.55 GB,
# measured), and everything else that the machine has to do.
_RESERVES = {"cuda": (600 * 10**6, 0.05), "cpu": (10**9, 0.10)}


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers."""
    return count_gpus() > 0


def count_gpus() -> int:
    """How many NVIDIA GPUs answer."""
    if not shutil.which("nvidia-smi"):
        return 0
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    return asked.stdout.count("GPU ") if asked.returncode == 0 else 0


def found_memory(device: str, declared_gb: float = 0.0) -> int:
    """Bytes of the device that trains; 0 where nobody knows. All of it, not what is free: what
    others do at the moment must not change how a model is trained.

    Args:
        device: `cpu` or `cuda`.
        declared_gb: What the recipe says, in units of 10^9 bytes.
    """
    if declared_gb:
        return round(declared_gb * GB)
    if device == "cuda":
        return int(_ask_gpu("memory.total") or 0) * 2**20
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
    return min([total, *_container_limits()])


def _container_limits() -> list[int]:
    places = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    found = []
    for place in places:
        try:
            found.append(int(Path(place).read_text()))
        except (OSError, ValueError):
            continue
    return found


def reserve_of(device: str, memory: int) -> int:
    """Bytes of a device's memory that training leaves alone.

    Args:
        device: `cpu` or `cuda`.
        memory: All of it, in bytes.
    """
    fixed, share = _RESERVES[device]
    return fixed + round(share * memory) if memory else 0


def memory_for(peak: int, device: str) -> int:
    """Bytes that a device must have for a training of this peak.

    Args:
        peak: Bytes.
        device: `cpu` or `cuda`.
    """
    fixed, share = _RESERVES[device]
    return math.ceil((peak + fixed) / (1 - share))


def device_kind(device: str) -> str:
    """The card's name, or the processor's with the number of its cores that this process may use.

    Args:
        device: `cpu` or `cuda`.
    """
    if device == "cuda":
        return _ask_gpu("name") or "unknown GPU"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(named, platform.machine())}, {cores} cores"


def _ask_gpu(what: str) -> str:
    """What nvidia-smi says of the first card; empty without one."""
    if not shutil.which("nvidia-smi"):
        return ""
    asked = subprocess.run(
        ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    lines = asked.stdout.strip().splitlines()
    return lines[0].strip() if asked.returncode == 0 and lines else ""
