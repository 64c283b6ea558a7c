"""Losses of language models, without ever holding the logits of more than a few hundred tokens.

The loss of a token is its negative log-likelihood, in nats. What the head costs is the same for
all tokens, so it is only asked for those that are learnt; and since the output embedding is
frozen, the gradient with respect to its input is known as soon as the logits are: it is computed
at once, chunk by chunk, and the logits are forgotten (the idea of Liger, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

# Logits at once, in bytes: more leave a processor's caches, and fewer rows read the head's weights
# too often for what they do with them. On a GPU, enough rows to keep its matrix units busy.
BYTES_AT_ONCE = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
_LEAST_ROWS, _MOST_ROWS = 192, 8192


class Tokens(NamedTuple):
    """What a model said of some tokens.

    Attributes:
        nats: float32 (tokens): the negative log-likelihood of each.
        right: bool (tokens): whether it was the likeliest; None where that was not asked for.
    """

    nats: torch.Tensor
    right: torch.Tensor | None


def head_losses(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    predict: bool = False,
) -> Tokens:
    """Losses of tokens from what enters a frozen output embedding.

    Args:
        hidden: (tokens, size): the head's inputs.
        targets: int64 (tokens): the token that follows each.
        weight: (vocabulary, size); no gradient is computed for it.
        bias: (vocabulary), or None.
        predict: Whether to say which targets were the most likely token.
    """
    if hidden.dtype != weight.dtype:
        hidden = hidden.to(weight.dtype)
    nats, right = _HeadLosses.apply(hidden, targets, weight, bias, predict)
    return Tokens(nats, right if predict else None)


def logit_losses(logits: torch.Tensor, targets: torch.Tensor, predict: bool = False) -> Tokens:
    """Losses of tokens from their logits: (tokens, vocabulary)."""
    rows = _rows(logits.device.type, logits.shape[-1])
    parts = [
        F.cross_entropy(part.float(), wanted, reduction="none")
        for part, wanted in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    nats = torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)
    return Tokens(nats, logits.detach().argmax(-1) == targets if predict else None)


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    Args:
        chosen, rejected: (pairs): log-likelihood of each answer under the model, in nats.
        reference_chosen, reference_rejected: The same under the reference model.
        beta: How strongly the model is held to the reference.

    Returns:
        The loss of each pair, and the margin of its implicit rewards: beta times the difference
        of the two log-ratios.
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
        # Of one token: its own row, times what the rest of the graph makes of its loss.
        return gradient * nats[:, None].to(gradient.dtype), None, None, None, None


def _by_chunks(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gradient: torch.Tensor | None,
    predict: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill `gradient` (of each loss with respect to its own row of `hidden`); see `Tokens`."""
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
        chances = torch.log_softmax(logits, -1, dtype=torch.float32)
        nats[part] = -chances.gather(-1, wanted)[:, 0]
        if gradient is not None:
            # d(-log p[target]) / d(logits) = p - onehot(target)
            chances.exp_().scatter_add_(-1, wanted, chances.new_full(wanted.shape, -1.0))
            torch.mm(chances.to(weight.dtype), weight, out=gradient[part])
    return nats, right


def _rows(device: str, vocabulary: int) -> int:
    most = BYTES_AT_ONCE.get(device, BYTES_AT_ONCE["cuda"]) // (4 * vocabulary)
    return min(_MOST_ROWS, max(_LEAST_ROWS, most))
