"""Losses of language models, computed without holding the logits of all tokens at once.

The loss of a token is its negative log-likelihood in nats. The head costs the same for every token,
so it is computed for target tokens only. Since the output embedding is frozen, the gradient with
respect to its input is known as soon as the logits are: it is computed chunk by chunk in the
forward pass, and the logits are discarded (the idea of Liger, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

# Bytes of logits in a chunk. On a CPU, larger chunks do not fit its caches, and smaller ones read
# the head's weights too often. On a GPU, there must be enough rows to keep its matrix units busy.
BYTES_AT_ONCE = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
MIN_ROWS, MAX_ROWS = 192, 8192
"""Bounds of the tokens in a chunk."""


class TokenLosses(NamedTuple):
    """The losses of target tokens.

    Attributes:
        nats: float32 (tokens): negative log-likelihood of each token.
        right: bool (tokens): whether it was the most likely token; None if not requested.
    """

    nats: torch.Tensor
    right: torch.Tensor | None


def head_losses(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    predict: bool = False,
) -> TokenLosses:
    """Losses of tokens from the inputs of a frozen output embedding.

    Args:
        hidden: (tokens, hidden size): inputs of the head.
        targets: int64 (tokens): the target token of each.
        weight: (vocabulary, hidden size); it gets no gradient.
        bias: (vocabulary), or None; it gets no gradient.
        predict: Whether to compute `right`.
    """
    if hidden.dtype != weight.dtype:
        hidden = hidden.to(weight.dtype)
    nats, right = _HeadLosses.apply(hidden, targets, weight, bias, predict)
    return TokenLosses(nats, right if predict else None)


def logit_losses(logits: torch.Tensor, targets: torch.Tensor, predict: bool = False) -> TokenLosses:
    """Losses of tokens from their logits.

    Args:
        logits: (tokens, vocabulary).
        targets: int64 (tokens): the target token of each.
        predict: Whether to compute `right`.
    """
    rows = _rows(logits.device.type, logits.shape[-1])
    parts = [
        F.cross_entropy(part.float(), wanted, reduction="none")
        for part, wanted in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    nats = torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)
    return TokenLosses(nats, logits.detach().argmax(-1) == targets if predict else None)


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of direct preference optimization (DPO; arXiv:2305.18290, equation 7).

    Args:
        chosen, rejected: (pairs): log-likelihood of each answer under the model, in nats.
        reference_chosen, reference_rejected: (pairs): the same under the reference model.
        beta: Strength of the pull towards the reference model.

    Returns:
        The loss of each pair, and its margin of implicit rewards: beta times the difference of the
        two log-ratios.
    """
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -F.logsigmoid(margin), margin


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        predict: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            nats, right = _by_chunks(hidden, targets, weight, bias, gradient, predict)
        ctx.mark_non_differentiable(right)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return nats, right

    @staticmethod
    def backward(ctx: Any, nats: torch.Tensor, _right: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        # Each token has its own row, scaled by the gradient of its loss.
        return gradient * nats[:, None].to(gradient.dtype), None, None, None, None


def _by_chunks(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gradient: torch.Tensor | None,
    predict: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `TokenLosses`; fill `gradient` with that of each loss w.r.t. its row of `hidden`."""
    nats = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    right = torch.empty(len(hidden) if predict else 0, dtype=torch.bool, device=hidden.device)
    rows = _rows(hidden.device.type, weight.shape[0])
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        wanted = targets[part, None]
        logits = hidden[part] @ weight.T
        if bias is not None:
            logits += bias
        if predict:
            right[part] = logits.argmax(-1) == wanted[:, 0]
        log_probs = torch.log_softmax(logits, -1, dtype=torch.float32)
        nats[part] = -log_probs.gather(-1, wanted)[:, 0]
        if gradient is not None:
            # d(-log p[target]) / d(logits) = p - onehot(target)
            probs = log_probs.exp_()
            probs.scatter_add_(-1, wanted, probs.new_full(wanted.shape, -1.0))
            torch.mm(probs.to(weight.dtype), weight, out=gradient[part])
    return nats, right


def _rows(device: str, vocabulary: int) -> int:
    most = BYTES_AT_ONCE.get(device, BYTES_AT_ONCE["cuda"]) // (4 * vocabulary)
    return min(MAX_ROWS, max(MIN_ROWS, most))
