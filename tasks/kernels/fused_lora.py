"""LoRA layers in one piece: what the adapter adds is added where the base's product lies.

peft computes x Wᵀ and s (x Aᵀ) Bᵀ apart, and autograd adds them up, forward and backward: each
sum reads and writes tensors of the layer's full width several times over, which takes a good part
of the time of the products themselves. Here both are one operation (as in Unsloth's kernels),
which accumulates in place. The numbers are peft's, but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch


def fuse(model: torch.nn.Module) -> int:
    """Let a model's LoRA layers compute in one piece, where that is what peft would compute.

    Left as they are: variants (DoRA), several adapters, and layers that are trained themselves.

    Args:
        model: With its adapter inside. No process holds only a share of it.

    Returns:
        How many layers do.
    """
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = _Fused(layer)
    return len(layers)


class _Fused:
    """A layer's forward pass.

    Args:
        layer: peft's.
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
        return _Sum.apply(
            x,
            None if dropped is x else dropped,
            self._down.weight.to(x.dtype),
            self._up.weight.to(x.dtype),
            self._scale,
            self._layer.base_layer,
        )


class _Sum(torch.autograd.Function):
    """x Wᵀ + b + s (z Aᵀ) Bᵀ, where z is x, or x with dropout. W and b are frozen."""

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
        read = (x if dropped is None else dropped).flatten(0, -2)
        low = read @ down.T
        made = base(x)
        made.flatten(0, -2).addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(read, low, down, up)
        ctx.scale, ctx.base, ctx.shape, ctx.drops = scale, base, x.shape, dropped is not None
        return made

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        read, low, down, up = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        of_low = (gradient @ up).mul_(ctx.scale)
        of_up = (gradient.T @ low).mul_(ctx.scale)
        of_x, of_dropped = None, None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ _weight(ctx.base, gradient.dtype)
            if not ctx.drops:
                of_x.addmm_(of_low, down)
            of_x = of_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            of_dropped = (of_low @ down).view(ctx.shape)
        return of_x, of_dropped, of_low.T @ read, of_up, None, None


def _weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """(out, in): a frozen layer's weights, dequantised where they are in 4 bits."""
    weight = base.weight
    if not hasattr(weight, "quant_state"):
        return weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.view(-1, 1), weight.quant_state).to(dtype)


def _is_plain(module: Any) -> bool:
    if not hasattr(module, "lora_A") or len(module.active_adapters) != 1:
        return False
    # peft and bitsandbytes take seconds to import: whoever has such a layer has imported them.
    base, name = module.get_base_layer(), module.active_adapters[0]
    return (
        (type(base) is torch.nn.Linear or hasattr(base.weight, "quant_state"))
        and not any(parameter.requires_grad for parameter in base.parameters())
        and name in module.lora_A
        and name not in module.lora_variant
        and not module.lora_bias[name]
    )
