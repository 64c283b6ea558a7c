"""The plan: what a recipe leaves open, settled before anything is keyed."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tasks.contracts.base import Contract


class Plan(Contract):
    """What the recipe leaves open, settled before anything is keyed (DESIGN: CPU and GPU).

    Attributes:
        device: `cpu` or `cuda`.
        precision: Number format of the forward and backward pass.
        attention: The attention implementation of transformers, or `packed`.
        optimizer: The optimizer's name in transformers.
        world_size: Number of training processes.
        sharding: Whether each of them holds the model (`ddp`) or a share of it (`fsdp`).
        packing: Whether examples lie one behind the other, without padding (language models).
        checkpointing: Whether activations are computed twice instead of kept.
        compile: Whether the model is compiled.
        kernels: `liger` where fused kernels replace the model's own.
        why: For people: what decided each pick.
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
