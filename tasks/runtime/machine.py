"""Describes this machine, for the plan and for keys. Does not import torch."""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from pathlib import Path

from tasks.contracts.machine import LIGER, GgufConverter, Machine
from tasks.runtime import gguf_converter
from tasks.runtime.code_digest import library_versions
from tasks.runtime.hardware import host_memory, processor_kind, visible_gpus

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def this_machine(libraries: tuple[str, ...] = ()) -> Machine:
    """Describe this machine, as this process may use it.

    Args:
        libraries: Distributions whose versions decide results.
    """
    gpus = visible_gpus()
    memory = host_memory()
    return Machine(
        device="cuda" if gpus else "cpu",
        gpus=len(gpus),
        kind=gpus[0].name if gpus else processor_kind(),
        processor=f"{platform.machine()} {platform.processor()}".strip(),
        memory=gpus[0].memory if gpus else memory,
        host_memory=memory,
        bf16=bool(gpus) or bool(BF16_FLAGS & processor_flags()),
        lacks_to_compile=lacks_to_compile(),
        converter=_converter(),
        libraries=library_versions(tuple(sorted({*libraries, LIGER}))),
    )


def processor_flags() -> set[str]:
    """The processor's feature flags; empty if the system is not Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return set(flags.split(":", 1)[1].split())


def lacks_to_compile() -> str:
    """What torch.compile needs and this machine lacks; empty if nothing."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"the compiler {compiler}"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's header Python.h"
    return ""


def _converter() -> GgufConverter | None:
    script = gguf_converter.find_converter()
    if script is None:
        return None
    return GgufConverter(
        script=str(script),
        digest=gguf_converter.converter_digest(),
        complete=not gguf_converter.lacks_module(script),
        architectures=gguf_converter.architectures(script),
    )
