"""Fused kernels in the place of a model's own (Liger, arXiv:2410.10989)."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.utils import is_liger_kernel_available

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.models import causal

# Not those of the loss: `tasks.training.losses` makes no logits for tokens that nobody learns.
_PARTS = {
    "rope": True,
    "rms_norm": True,
    "swiglu": True,
    "geglu": True,
    "layer_norm": False,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def fuse(model: PreTrainedModel, device: str) -> None:
    """Put Liger's rotary embedding, norm and gated MLP in the place of a model's own.

    Some of it is put into the module of transformers that the model is from, for good: into this
    process's.

    Args:
        model: A base, without an adapter.
        device: Where it is.

    Raises:
        BadRecipe: The kernels are not here.
        BadModel: The model says something else with them. An MLP of another activation, for
            example, would be given theirs without a word.
    """
    if not is_liger_kernel_available():
        raise BadRecipe(
            "plan.kernels",
            "liger, on a worker without it",
            "liger-kernel where the training runs",
            "install liger-kernel there, or set plan.kernels to none",
        )
    # Slow to import, and only needed here.
    from transformers.integrations.liger import apply_liger_kernel

    before = causal.sample_states(model, device)
    apply_liger_kernel(model, dict(_PARTS))
    if not causal.close(causal.sample_states(model, device), before):
        raise BadModel(
            "model.uri",
            f"a {type(model).__name__} that says something else with Liger's kernels",
            "the same hidden states, but for rounding",
            "set plan.kernels to none",
        )
