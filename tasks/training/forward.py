"""The forward pass of a batch, packed or padded, to the losses of its target tokens."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import PreTrainedModel

from tasks.contracts.plan import Plan
from tasks.kernels import packed_attention
from tasks.models import causal
from tasks.runtime import ranks
from tasks.training import losses
from tasks.training.language_batches import Batch


class Forward:
    """Computes the losses of target tokens in the cheapest way that is correct for a model.

    Attributes:
        packing: Whether batches are to be packed.
        sharded: Whether the model is sharded over several processes.
        skips_logits: Whether losses are computed from hidden states, without the model's head.

    Args:
        base: The model with its adapter layers, without the adapter's wrapper.
        plan: The job's plan.
        warnings: Receives what the plan asks for and the model does not support.
    """

    def __init__(self, base: PreTrainedModel, plan: Plan, warnings: list[str]) -> None:
        self._base, self._device = base, plan.device
        self._half = plan.precision == "bf16"
        self.sharded = plan.sharding == "fsdp" and ranks.count() > 1
        self._probe(plan, warnings)
        if self._half:
            # Adapters are fp32 and autocast rounds them: casting their inputs up would be undone.
            for module in base.modules():
                if hasattr(module, "lora_A"):
                    module.cast_input_dtype_enabled = False

    def __call__(
        self, model: torch.nn.Module, batch: Batch, predict: bool = False
    ) -> losses.TokenLosses:
        """The losses of a batch's target tokens.

        Args:
            model: The model with all its wrappers.
            batch: A batch from `make_batch`, packed if `packing` is set.
            predict: Whether to compute which targets were the most likely token.
        """
        with self._precision():
            if self.skips_logits:
                return self._losses_from_states(model, batch, predict)
            return self._losses_from_logits(model, batch, predict)

    def _losses_from_states(
        self, model: torch.nn.Module, batch: Batch, predict: bool
    ) -> losses.TokenLosses:
        with causal.headless(self._base):
            states = model(**batch.inputs, use_cache=False).logits
        head = self._base.get_output_embeddings()
        states = states.reshape(-1, states.shape[-1]).index_select(0, batch.target_positions)
        return losses.head_losses(
            states, batch.targets, head.weight, getattr(head, "bias", None), predict
        )

    def _losses_from_logits(
        self, model: torch.nn.Module, batch: Batch, predict: bool
    ) -> losses.TokenLosses:
        if self.packing and causal.accepts_logits_to_keep(self._base):
            logits = model(
                **batch.inputs, use_cache=False, logits_to_keep=batch.target_positions
            ).logits[0]
        else:
            logits = model(**batch.inputs, use_cache=False).logits
            logits = logits.reshape(-1, logits.shape[-1]).index_select(0, batch.target_positions)
        return losses.logit_losses(logits, batch.targets, predict)

    def _probe(self, plan: Plan, warnings: list[str]) -> None:
        """Test whether the model supports packing, and whether its head can be skipped."""
        base = self._base
        base.eval()
        with self._precision():
            # These compute a mask of the whole row, which may be longer than what a model takes.
            plain = base.config._attn_implementation in ("sdpa", "eager")
            obstacle = f"attention {base.config._attn_implementation}" if plain else ""
            if plan.packing and not plain:
                obstacle = causal.packing_obstacle(base, self._device)
            self.packing = plan.packing and not obstacle
            if plan.packing and obstacle:
                warnings.append(
                    "packing is off: with this architecture and attention, packed examples may "
                    f"affect each other ({obstacle})"
                )
            if not self.packing and base.config._attn_implementation == packed_attention.NAME:
                plain = base._supports_sdpa and causal.supports_plain_attention(base, self._device)
                base.set_attn_implementation("sdpa" if plain else "eager")
            self.skips_logits = plan.sharding != "fsdp" and causal.head_is_linear(
                base, self._device
            )

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self._device, torch.bfloat16, enabled=self._half)
