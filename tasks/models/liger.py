"""Replace parts of a model with Liger's fused kernels (arXiv:2410.10989)."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.utils import is_liger_kernel_available

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.models import causal

# Not the losses: `tasks.training.losses` computes logits for target tokens only.
_KERNELS = {
    "rope": True,
    "rms_norm": True,
    "swiglu": True,
    "geglu": True,
    "layer_norm": False,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def apply_liger(model: PreTrainedModel, device: str) -> None:
    """Replace a model's rotary embedding, norms and gated MLP with Liger's kernels.

    Some of them are patched into transformers' module of this architecture, so they stay for the
    life of the process.

    Args:
        model: A base model without an adapter.
        device: The device that it is on.

    Raises:
        BadRecipe: liger-kernel is not installed.
        BadModel: The model's hidden states change. Liger would, for example, silently replace an
            MLP with another activation.
    """
    if not is_liger_kernel_available():
        raise BadRecipe(
            "plan.kernels",
            "liger, on a worker without liger-kernel",
            "liger-kernel where the training runs",
            "install liger-kernel there, or set plan.kernels to none",
        )
    # Slow to import, and only needed here.
    from transformers.integrations.liger import apply_liger_kernel

    before = causal.probe_hidden_states(model, device)
    apply_liger_kernel(model, dict(_KERNELS))
    if not causal.nearly_equal(causal.probe_hidden_states(model, device), before):
        raise BadModel(
            "model.uri",
            f"a {type(model).__name__} whose hidden states change with Liger's kernels",
            "equal hidden states, except for rounding",
            "set plan.kernels to none",
        )
