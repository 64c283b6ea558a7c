"""The memory that operations take on a GPU, where the same operations take other memory on a CPU.

A traced step (`tasks.plan.memory_trace`) runs on fake tensors as on a CPU; what differs is here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tasks.plan.fake_model import BLOCK
from tasks.training import losses


def register_varlen() -> str:
    """Register an attention with the memory of FlashAttention 2; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("varlen", _varlen)
    AttentionMaskInterface.register("varlen", lambda *_, **__: None)
    return "varlen"


def _varlen(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """Memory of `packed_attention._on_cuda`."""
    flat = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))
    return _VarLen.apply(*flat), None


class _VarLen(torch.autograd.Function):
    """Memory of FlashAttention 2 (arXiv:2307.08691): inputs, output and each row's log-sum-exp are
    kept; the backward pass accumulates the query's gradient in fp32."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        out = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, sums = ctx.saved_tensors
        grad_query = torch.empty_like(query, dtype=torch.float32)
        grad_sums = torch.empty_like(sums)
        found = tuple(torch.empty_like(each) for each in (query, key, value))
        del grad_query, grad_sums, gradient
        return found


@contextlib.contextmanager
def like_cuda() -> Iterator[None]:
    """A context in which operations take the memory that they take on a GPU."""
    rows, dropout = losses.BYTES_AT_ONCE["cpu"], torch.nn.Dropout.forward
    losses.BYTES_AT_ONCE["cpu"] = losses.BYTES_AT_ONCE["cuda"]
    torch.nn.Dropout.forward = _native_dropout
    try:
        yield
    finally:
        losses.BYTES_AT_ONCE["cpu"], torch.nn.Dropout.forward = rows, dropout


def _native_dropout(module: torch.nn.Dropout, hidden: torch.Tensor) -> torch.Tensor:
    # Keeps a mask of one byte per number; on a CPU the mask has the numbers' own format.
    if not module.training or not module.p:
        return hidden
    return torch.native_dropout(hidden, module.p, True)[0]


def _dequantized(arguments: tuple[Any, ...]) -> int:
    """Bytes that a product with a 4-bit weight needs: the weight, and the fp32 scale of each
    block, as `_gemm_4bit_default_impl` of bitsandbytes makes them."""
    hidden, _, shape = arguments[:3]
    return math.prod(shape) * hidden.element_size() + math.prod(shape) // BLOCK * 4


def _workspaces() -> dict[Any, Callable[[tuple[Any, ...]], int]]:
    import bitsandbytes  # noqa: F401 - registers its operations

    return {torch.ops.bitsandbytes.gemm_4bit.default: _dequantized}


WORKSPACES = _workspaces()
"""For operations whose kernels need memory while they run: its bytes for their arguments."""
