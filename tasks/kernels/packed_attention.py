"""Attention for examples that lie one behind the other in one row, each seeing itself alone.

Registered with transformers as `packed`. A model called with `packed_arguments(lengths)` runs its
attention example by example: no padding, no mask, and no example sees another. Without these
arguments every row is one example.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed"
# What some models want of their attention beyond scaled dot products.
_UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias", "head_mask")


class _How(NamedTuple):
    """What of `attend`'s arguments all ways to compute it take alike."""

    dropout: float
    scaling: float | None
    window: int | None


class UnsupportedAttention(Exception):
    """The model's attention is more than scaled dot products of what came before."""


def register() -> None:
    """Make the attention known to transformers. Doing it twice does no harm."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)


def packed_arguments(lengths: list[int], device: str) -> dict[str, Any]:
    """What a model must be called with, besides `input_ids`: by the names of transformers'
    FlashAttention arguments, so that FlashAttention understands them as well.

    Args:
        lengths: Tokens of each example, in their order.
        device: Where the model is.
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
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each example; the signature is that of `AttentionInterface`.

    Args:
        module: The attention layer.
        query: (rows, heads, tokens, size).
        key, value: The same, with as many heads or a divisor of their number.
        attention_mask: Always None: `_no_mask` made it.
        dropout: Of the attention weights.
        scaling: Of the scores; None for 1 / sqrt(size).
        sliding_window: How many tokens each token sees, itself among them; None for all.
        cu_seq_lens_q: int32: where each example of the only row begins, and the end of the last.
        max_length_q: Tokens in the longest example.
        **options: What other kinds of attention need.

    Returns:
        (rows, tokens, heads, size), and None for the weights.

    Raises:
        UnsupportedAttention: See `UnsupportedAttention`.
    """
    asked = [name for name in _UNSUPPORTED_OPTIONS if options.get(name) is not None]
    if asked or attention_mask is not None or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttention(", ".join(asked) or "a mask")
    how, ends = _How(dropout, scaling, sliding_window), cu_seq_lens_q
    if ends is None:
        return _plain(query, key, value, how).transpose(1, 2), None
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.is_cuda:
        return _on_cuda(query, key, value, how, ends, max_length_q), None
    return _one_by_one(query, key, value, how, ends), None


# Lengths are read: what cannot be compiled. On CUDA it may be possible, and was not tried.
@torch.compiler.disable
def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: _How, ends: torch.Tensor
) -> torch.Tensor:
    lengths = ends.diff().tolist()
    # Split, not sliced: the gradient of a split is one concatenation, that of each slice a whole
    # tensor of zeros around it.
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    done = [_plain(*part, how).transpose(1, 2) for part in parts]
    return torch.cat(done, dim=1)


def _plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: _How) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if how.window is not None and how.window < length:
        place = torch.arange(length, device=query.device)
        behind = place[:, None] - place
        mask = (behind >= 0) & (behind < how.window)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=how.dropout,
        scale=how.scaling,
        is_causal=mask is None,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _varlen_works(query: torch.Tensor) -> bool:
    # FlashAttention's own limits.
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
    how: _How,
    ends: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    if how.dropout or not _varlen_works(query):
        return _one_by_one(query, key, value, how, ends)
    from torch.nn.attention.varlen import varlen_attn

    flat = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    done = varlen_attn(
        *flat,
        ends,
        ends,
        longest,
        longest,
        scale=how.scaling,
        # How far each token sees to the left and to the right; -1 is without limit.
        window_size=(-1 if how.window is None else how.window - 1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return done[None]


def _no_mask(*_: Any, **__: Any) -> None:
    return None
