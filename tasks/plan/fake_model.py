"""A language model without memory: its base and adapter on torch's fake tensors, which have shapes
but no content. Only the configuration of the base is read."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from tasks.models import causal, weights
from tasks.plan.memory_tracker import MemoryTracker

WEIGHTS, CONSTANTS, ADAPTERS = "weights", "quantization constants", "adapters"
# nf4 with double quantization (arXiv:2305.14314, section 3): half a byte per weight, one byte for
# each block of 64, and four for each 256 of those.
BLOCK, OUTER_BLOCK = 64, 256


def meta_model(
    config: Any, *, dtype: torch.dtype, attention: str, quantization: str, lora: dict[str, Any]
) -> torch.nn.Module:
    """Base and adapter on the meta device, as `load_causal` and `attach_lora` make them.

    Args:
        config: The base's configuration.
        dtype: Of the base's weights.
        attention: An attention implementation of transformers.
        quantization: none or nf4.
        lora: `LoraRecipe` as plain values.
    """

    def make(attention: str) -> PreTrainedModel:
        attention = weights.supported_attention(attention, config, MODEL_FOR_CAUSAL_LM_MAPPING)
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )

    with torch.device("meta"):
        model = weights.with_attention(make, attention)
    if quantization == "nf4":
        # Slow to import, and only needed here.
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear

        head = causal.head_name(model)
        replace_with_bnb_linear(model, [head], weights.nf4_config(dtype, [head]))
        model.is_loaded_in_4bit = True
    return causal.attach_lora(model, lora, 0)


def fill(model: torch.nn.Module, tracker: MemoryTracker, dtype: torch.dtype) -> None:
    """Replace meta tensors by fake ones, and assign them to their parts of memory."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        four_bit = hasattr(module, "quant_state") and hasattr(module, "compute_dtype")
        for name, old in list(module._parameters.items()):
            if old is None:
                continue
            if four_bit and name == "weight":
                module._parameters[name] = _nf4_weight(tuple(old.shape), dtype, tracker)
                continue
            if id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype)
                made[id(old)] = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                tracker.own([made[id(old)]], ADAPTERS if old.requires_grad else WEIGHTS)
            module._parameters[name] = made[id(old)]
        for name, old in list(module._buffers.items()):
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)
                tracker.own([module._buffers[name]], WEIGHTS)


def _nf4_weight(
    shape: tuple[int, ...], dtype: torch.dtype, tracker: MemoryTracker
) -> torch.nn.Parameter:
    from bitsandbytes.functional import QuantState

    numbers = math.prod(shape)
    blocks = math.ceil(numbers / BLOCK)
    outer = QuantState(
        absmax=torch.empty(math.ceil(blocks / OUTER_BLOCK)),
        code=torch.empty(256),
        blocksize=OUTER_BLOCK,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=torch.Size(shape),
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.empty(()),
        state2=outer,
    )
    packed = torch.empty(((numbers + 1) // 2, 1), dtype=torch.uint8)
    weight = torch.nn.Parameter(packed, requires_grad=False)
    weight.quant_state = state
    tracker.own([weight], WEIGHTS)
    tracker.own([state.absmax, state.code, state.offset, outer.absmax, outer.code], CONSTANTS)
    return weight


def config_of(folder: Path, depth: int | None = None) -> Any:
    """A model's configuration.

    Args:
        folder: The model.
        depth: Number of layers; None for its own.
    """
    config = copy.deepcopy(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    if depth is not None:
        text = config.get_text_config()
        text.num_hidden_layers = depth
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:depth]
    return config


def layer_count(folder: Path) -> int | None:
    """The number of a model's layers; None if they differ."""
    config = config_of(folder).get_text_config()
    alike = len(set(getattr(config, "layer_types", None) or [0])) == 1
    return getattr(config, "num_hidden_layers", None) if alike else None
