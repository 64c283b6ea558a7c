"""Measures the training device: its kind, and how much memory it has.

Does not import torch, which takes seconds.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

GB = 10**9


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU."""
    return count_gpus() > 0


def count_gpus() -> int:
    """How many NVIDIA GPUs this machine has."""
    if not shutil.which("nvidia-smi"):
        return 0
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    return done.stdout.count("GPU ") if done.returncode == 0 else 0


def found_memory(device: str, declared_gb: float = 0.0) -> int:
    """The training device's memory in bytes; 0 if unknown.

    This is the total, not what is free: what else runs at the moment must not change how a model is
    trained.

    Args:
        device: `cpu` or `cuda`.
        declared_gb: The memory as the recipe states it, in units of 10^9 bytes; 0 to measure it.
    """
    if declared_gb:
        return round(declared_gb * GB)
    if device == "cuda":
        return int(_query_gpu("memory.total") or 0) * 2**20
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
    return min([total, *_container_limits()])


def _container_limits() -> list[int]:
    files = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    found = []
    for file in files:
        try:
            found.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return found


def device_kind(device: str) -> str:
    """The GPU's name, or the processor's name with the number of cores that this process may use.

    Args:
        device: `cpu` or `cuda`.
    """
    if device == "cuda":
        return _query_gpu("name") or "unknown GPU"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(named, platform.machine())}, {cores} cores"


def _query_gpu(what: str) -> str:
    """One property of the first GPU, by its name for nvidia-smi; empty without a GPU."""
    if not shutil.which("nvidia-smi"):
        return ""
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""
