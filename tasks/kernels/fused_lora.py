"""Fused LoRA layers: base and adapter are one operation that accumulates in place.

peft computes x Wᵀ and s (x Aᵀ) Bᵀ separately, and autograd adds them in the forward and the
backward pass. Each sum reads and writes tensors of the layer's full width several times, which
takes a considerable part of the time of the products themselves. Here both are one operation, as
in Unsloth's kernels. The results equal peft's except for rounding.
"""

from __future__ import annotations

from typing import Any

import torch


def fuse(model: torch.nn.Module) -> int:
    """Fuse the LoRA layers of a model, in place.

    Variants (DoRA), layers with several adapters and layers whose base is trained are left as they
    are.

    Args:
        model: A model with an adapter, not sharded.

    Returns:
        The number of fused layers.
    """
    layers = [module for module in model.modules() if _can_fuse(module)]
    for layer in layers:
        layer.forward = _FusedForward(layer)
    return len(layers)


class _FusedForward:
    """The forward pass of one LoRA layer.

    Args:
        layer: The layer of peft.
    """

    def __init__(self, layer: Any) -> None:
        self._layer, self._peft = layer, layer.forward
        (name,) = layer.active_adapters
        self._down, self._up = layer.lora_A[name], layer.lora_B[name]
        self._dropout, self._scale = layer.lora_dropout[name], layer.scaling[name]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._layer.disable_adapters or self._layer.merged:
            return self._peft(x)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        dropped = self._dropout(x)
        return _FusedLora.apply(
            x,
            None if dropped is x else dropped,
            self._down.weight.to(x.dtype),
            self._up.weight.to(x.dtype),
            self._scale,
            self._layer.base_layer,
        )


class _FusedLora(torch.autograd.Function):
    """x Wᵀ + b + s (z Aᵀ) Bᵀ, where z is x, or x after dropout. W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        base: torch.nn.Module,
    ) -> torch.Tensor:
        inputs = (x if dropped is None else dropped).flatten(0, -2)
        low = inputs @ down.T
        out = base(x)
        out.flatten(0, -2).addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(inputs, low, down, up)
        ctx.scale, ctx.base, ctx.shape, ctx.drops = scale, base, x.shape, dropped is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, low, down, up = ctx.saved_tensors
        grad_out = grad_out.flatten(0, -2)
        grad_low = (grad_out @ up).mul_(ctx.scale)
        grad_up = (grad_out.T @ low).mul_(ctx.scale)
        grad_x, grad_dropped = None, None
        if ctx.needs_input_grad[0]:
            grad_x = grad_out @ _weight(ctx.base, grad_out.dtype)
            if not ctx.drops:
                grad_x.addmm_(grad_low, down)
            grad_x = grad_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            grad_dropped = (grad_low @ down).view(ctx.shape)
        return grad_x, grad_dropped, grad_low.T @ inputs, grad_up, None, None


def _weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weights of a frozen layer, dequantized if they are 4-bit: (out, in)."""
    weight = base.weight
    if not hasattr(weight, "quant_state"):
        return weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.view(-1, 1), weight.quant_state).to(dtype)


def _can_fuse(module: Any) -> bool:
    if not hasattr(module, "lora_A") or len(module.active_adapters) != 1:
        return False
    # Not isinstance: peft and bitsandbytes take seconds to import.
    base, name = module.get_base_layer(), module.active_adapters[0]
    return (
        (type(base) is torch.nn.Linear or hasattr(base.weight, "quant_state"))
        and not any(parameter.requires_grad for parameter in base.parameters())
        and name in module.lora_A
        and name not in module.lora_variant
        and not module.lora_bias[name]
    )
