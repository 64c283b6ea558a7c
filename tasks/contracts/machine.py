"""The machine that trains and scores: this one, or one of a pool's workers."""

from __future__ import annotations

from typing import Literal

from tasks.contracts.base import Contract

LIGER = "liger-kernel"
# What else runs on a machine, and how its memory is counted, differs a little between equal ones.
_SAME_MEMORY = 0.05


class GgufConverter(Contract):
    """The converter of models to GGUF.

    Attributes:
        script: Where it is, for people.
        digest: Of its sources.
        complete: Whether the modules that it imports are installed.
        architectures: Those that it names.
    """

    script: str
    digest: str
    complete: bool
    architectures: tuple[str, ...]


class Machine(Contract):
    """What training and scoring need to know of the machine that they will run on.

    Attributes:
        device: `cpu` or `cuda`.
        gpus: How many GPUs a process there may use.
        kind: The GPU's name, or the processor's with its number of cores.
        processor: The kind of processor, on which latency depends.
        memory: Bytes of one device; 0 if unknown.
        host_memory: Bytes of the machine; 0 if unknown.
        bf16: Whether the device computes in bf16.
        lacks_to_compile: What torch.compile needs and is not there; empty if nothing.
        converter: To GGUF; None if there is none.
        libraries: Versions of the distributions that decide results; `absent` if not installed.
    """

    device: Literal["cpu", "cuda"]
    gpus: int
    kind: str
    processor: str
    memory: int
    host_memory: int
    bf16: bool
    lacks_to_compile: str
    converter: GgufConverter | None
    libraries: dict[str, str]

    @property
    def has_liger(self) -> bool:
        """Whether Liger's kernels are installed there."""
        return self.libraries.get(LIGER, "absent") != "absent"

    def differences(self, other: Machine) -> list[str]:
        """Where another machine would train differently, in words, from here to there."""
        found = [
            f"{name} {self.libraries.get(name, 'absent')} there, {version} here"
            for name, version in sorted(other.libraries.items())
            if self.libraries.get(name, "absent") != version
        ]
        for name in ("device", "gpus", "kind", "bf16", "lacks_to_compile"):
            there, here = getattr(self, name), getattr(other, name)
            if there != here:
                found.append(f"{name} {there!r} there, {here!r} here")
        for name in ("memory", "host_memory"):
            there, here = getattr(self, name), getattr(other, name)
            if abs(there - here) > _SAME_MEMORY * max(there, here):
                found.append(f"{name} {there / 1e9:.1f} GB there, {here / 1e9:.1f} GB here")
        there, here = (each.converter.digest if each.converter else "" for each in (self, other))
        if there != here:
            found.append("another converter to GGUF")
        return found
