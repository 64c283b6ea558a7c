"""The plan: how a model is trained on this machine."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tasks.contracts.base import Contract


class Plan(Contract):
    """What the recipe leaves open, decided before training, and part of its cache key.

    Attributes:
        device: `cpu` or `cuda`.
        precision: Number format of the forward and backward pass.
        attention: The attention implementation of transformers, or `packed`.
        optimizer: The optimizer's name in transformers.
        world_size: Number of training processes.
        sharding: Whether each of them holds the model (`ddp`) or a shard of it (`fsdp`).
        packing: Whether examples are packed into sequences without padding (language models).
        checkpointing: Whether activations are recomputed instead of kept.
        compile: Whether the model is compiled.
        kernels: `liger` if fused kernels replace the model's own.
        why: The reason for each pick, for the report.
    """

    cache_key_excludes: ClassVar[frozenset[str]] = frozenset({"why"})

    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16"]
    attention: str = "sdpa"
    optimizer: str = "adamw_torch"
    world_size: int = 1
    sharding: Literal["ddp", "fsdp"] = "ddp"
    packing: bool = False
    checkpointing: bool = False
    compile: bool = False
    kernels: Literal["none", "liger"] = "none"
    why: dict[str, str] = Field(default_factory=dict)
