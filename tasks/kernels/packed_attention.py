"""Attention for packed batches: examples are concatenated in one row and attend to themselves only.

Registered with transformers as `packed`. A model called with `packed_arguments(lengths)` computes
its attention example by example, without padding or mask. Without these arguments every row is one
example.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed"
# Arguments by which models ask for more than scaled dot products.
_UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias", "head_mask")


class _Options(NamedTuple):
    """Those arguments of `attend` that every implementation takes."""

    dropout: float
    scaling: float | None
    window: int | None


class UnsupportedAttention(Exception):
    """The model needs more than causal attention with scaled dot products."""


def register() -> None:
    """Register the attention with transformers. Calling it twice is harmless."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)


def packed_arguments(lengths: list[int], device: str) -> dict[str, Any]:
    """The arguments of a packed batch besides `input_ids`.

    They have the names of transformers' FlashAttention arguments, so FlashAttention accepts them
    too.

    Args:
        lengths: Tokens of each example, in order.
        device: The model's device.
    """
    ends = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(device)
    positions = np.concatenate([np.arange(length) for length in lengths])
    longest = max(lengths)
    return {
        "position_ids": torch.from_numpy(positions)[None].to(device),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each example; the signature is that of `AttentionInterface`.

    Args:
        module: The attention layer.
        query: (rows, heads, tokens, head size).
        key, value: The same shape; the number of heads may be a divisor of that of query.
        attention_mask: Always None, as `_no_mask` returns it.
        dropout: Dropout probability of the attention weights.
        scaling: Factor of the scores; None for 1 / sqrt(head size).
        sliding_window: Tokens that each token attends to, including itself; None for all.
        cu_seq_lens_q: int32: start of each example in the only row, and the end of the last;
            None if every row is one example.
        max_length_q: Tokens of the longest example.
        **others: Arguments of other kinds of attention.

    Returns:
        (rows, tokens, heads, head size), and None in place of the attention weights.

    Raises:
        UnsupportedAttention: A mask or another kind of attention is required.
    """
    unsupported = [name for name in _UNSUPPORTED_OPTIONS if others.get(name) is not None]
    if unsupported or attention_mask is not None or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttention(", ".join(unsupported) or "a mask")
    options, ends = _Options(dropout, scaling, sliding_window), cu_seq_lens_q
    if ends is None:
        return _one_example_per_row(query, key, value, options).transpose(1, 2), None
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.is_cuda:
        return _on_cuda(query, key, value, options, ends, max_length_q), None
    return _one_by_one(query, key, value, options, ends), None


# Reading the lengths breaks the compiled graph. It may be avoidable on CUDA; this was not tried.
@torch.compiler.disable
def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: _Options,
    ends: torch.Tensor,
) -> torch.Tensor:
    lengths = ends.diff().tolist()
    # Split, not sliced: the backward pass of a split is one concatenation; that of a slice fills a
    # tensor of full size with zeros.
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    done = [_one_example_per_row(*part, options).transpose(1, 2) for part in parts]
    return torch.cat(done, dim=1)


def _one_example_per_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: _Options
) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if options.window is not None and options.window < length:
        position = torch.arange(length, device=query.device)
        distance = position[:, None] - position
        mask = (distance >= 0) & (distance < options.window)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=options.dropout,
        scale=options.scaling,
        is_causal=mask is None,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _supports_varlen(query: torch.Tensor) -> bool:
    # The limits of FlashAttention.
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@torch.compiler.disable
def _on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: _Options,
    ends: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    if options.dropout or not _supports_varlen(query):
        return _one_by_one(query, key, value, options, ends)
    from torch.nn.attention.varlen import varlen_attn

    flat = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    done = varlen_attn(
        *flat,
        ends,
        ends,
        longest,
        longest,
        scale=options.scaling,
        # Tokens to the left and to the right; -1 means no limit.
        window_size=(-1 if options.window is None else options.window - 1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return done[None]


def _no_mask(*_: Any, **__: Any) -> None:
    return None
