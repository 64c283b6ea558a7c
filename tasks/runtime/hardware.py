"""Finds the GPUs, the processor and the memory that this process may use.

Does not import torch, which takes seconds.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

GB = 10**9


class Gpu(NamedTuple):
    """An NVIDIA GPU.

    Attributes:
        uuid: As `CUDA_VISIBLE_DEVICES` may name it.
        name: Such as `NVIDIA H200`.
        memory: In bytes; 0 if unknown.
    """

    uuid: str
    name: str
    memory: int


def has_gpu() -> bool:
    """Whether this process may use an NVIDIA GPU."""
    return bool(visible_gpus())


def visible_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that this process may use.

    Those that `CUDA_VISIBLE_DEVICES` names by index or UUID, up to the first that does not exist,
    as CUDA reads it; all if it is not set.
    """
    if not shutil.which("nvidia-smi"):
        return []
    asked = ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    gpus = {
        uuid: Gpu(uuid, name, int(memory) * 2**20 if memory.isdecimal() else 0)
        for uuid, name, memory in rows
    }
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(gpus.values())
    found = []
    for entry in map(str.strip, wanted.split(",")):
        if entry.startswith("MIG-") and gpus:
            # A part of a card; nvidia-smi does not tell how much memory it has.
            found.append(Gpu(entry, f"{next(iter(gpus.values())).name} MIG", 0))
            continue
        matching = [gpu for uuid, gpu in gpus.items() if entry and uuid.startswith(entry)]
        if entry.isdecimal() and int(entry) < len(gpus):
            matching = [list(gpus.values())[int(entry)]]
        if len(matching) != 1:
            break
        found += matching
    return found


def host_memory() -> int:
    """The memory in bytes that this process may use; 0 if unknown.

    This is the total, not what is free.
    """
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


def processor_kind() -> str:
    """The processor's name with the number of cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{next(named, platform.machine())}, {cores} cores"
