"""The forward pass of a packed batch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import PreTrainedModel

from tasks.contracts.plan import Plan
from tasks.kernels import fused_lora, packed_attention
from tasks.models import causal
from tasks.runtime import ranks
from tasks.training import losses
from tasks.training.language_batches import Batch


class Forward:
    """Asks a model for the losses of tokens, the cheapest way that is right for it.

    Attributes:
        packing: Whether batches shall be packed.
        shared: Whether several processes hold the model together.

    Args:
        base: The model, with its adapter inside, but without the adapter's wrapper.
        plan: The job's plan.
        warnings: Gets what the plan wants and the model does not allow.
    """

    def __init__(self, base: PreTrainedModel, plan: Plan, warnings: list[str]) -> None:
        self._base, self._device = base, plan.device
        self._half = plan.precision == "bf16"
        self.shared = plan.sharding == "fsdp" and ranks.count() > 1
        self._find_out(plan, warnings)
        if self._half:
            # Adapters are fp32, and autocast rounds them: casting their inputs up would be undone.
            for module in base.modules():
                if hasattr(module, "lora_A"):
                    module.cast_input_dtype_enabled = False
        if not self.shared and not plan.compile:
            fused_lora.fuse(base)

    def __call__(
        self, model: torch.nn.Module, batch: Batch, predict: bool = False
    ) -> losses.Tokens:
        """Losses of a batch's learnt tokens.

        Args:
            model: The model, with all its wrappers.
            batch: From `make_batch`, packed as `packing` says.
            predict: Whether to say which targets were the most likely token.
        """
        with self._precision():
            if self._fused:
                return self._of_states(model, batch, predict)
            return self._of_logits(model, batch, predict)

    def _of_states(self, model: torch.nn.Module, batch: Batch, predict: bool) -> losses.Tokens:
        with causal.headless(self._base):
            states = model(**batch.inputs, use_cache=False).logits
        head = self._base.get_output_embeddings()
        states = states.reshape(-1, states.shape[-1]).index_select(0, batch.target_positions)
        return losses.head_losses(
            states, batch.targets, head.weight, getattr(head, "bias", None), predict
        )

    def _of_logits(self, model: torch.nn.Module, batch: Batch, predict: bool) -> losses.Tokens:
        if self.packing and causal.accepts_logits_to_keep(self._base):
            logits = model(
                **batch.inputs, use_cache=False, logits_to_keep=batch.target_positions
            ).logits[0]
        else:
            logits = model(**batch.inputs, use_cache=False).logits
            logits = logits.reshape(-1, logits.shape[-1]).index_select(0, batch.target_positions)
        return losses.logit_losses(logits, batch.targets, predict)

    def _find_out(self, plan: Plan, warnings: list[str]) -> None:
        """Ask the model what it allows: packing, and leaving its head out."""
        base = self._base
        base.eval()
        with self._precision():
            self.packing = plan.packing and causal.supports_packing(base, self._device)
            if plan.packing and not self.packing:
                warnings.append(
                    "packing was left out: this architecture's examples would see each other"
                )
            if not self.packing and base.config._attn_implementation == packed_attention.NAME:
                base.set_attn_implementation(
                    "sdpa" if causal.supports_plain_attention(base, self._device) else "eager"
                )
            self._fused = plan.sharding != "fsdp" and causal.head_is_linear(base, self._device)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self._device, torch.bfloat16, enabled=self._half)
