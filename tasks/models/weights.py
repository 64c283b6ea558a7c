"""Precision, quantization and device of a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
)

from tasks.runtime import ranks

AnyModel = TypeVar("AnyModel")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def local_device(device: str) -> str:
    """The device of this process: each of several training processes has its own GPU.

    Args:
        device: `cpu`, `cuda` or `meta`.
    """
    several = device == "cuda" and ranks.count() > 1
    return f"cuda:{ranks.local_rank()}" if several else device


def supported_attention(attention: str, config: Any, mapping: Mapping[Any, Any]) -> str:
    """Return `eager` instead of `sdpa` for an architecture without it, as transformers does by
    itself if no implementation is named.

    Args:
        attention: The attention implementation that is wanted.
        config: The model's configuration.
        mapping: Model classes by configuration class, such as `MODEL_FOR_CAUSAL_LM_MAPPING`.
    """
    if attention != "sdpa" or type(config) not in mapping:
        return attention
    return "sdpa" if mapping[type(config)]._supports_sdpa else "eager"


def with_attention(load: Callable[[str], AnyModel], attention: str) -> AnyModel:
    """Load a model with an attention implementation, or with one that its code knows.

    Args:
        load: Loads it with the named implementation.
        attention: The implementation that is wanted.
    """
    try:
        return load(attention)
    except KeyError as error:
        # GPT-J, Falcon and a few others pick theirs from a list, without implementations that are
        # registered with transformers.
        if error.args != (attention,):
            raise
        return load("sdpa")


def keep_4bit_trainable(model: torch.nn.Module) -> None:
    """Keep 4-bit layers trainable on processors with AVX512-BF16.

    On these, bitsandbytes repacks the weights at the first forward pass in evaluation mode, and
    later training silently loses the gradients through them.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def disable_base_dropout(model: PreTrainedModel) -> None:
    """Turn off dropout in the base, but not in the head.

    The base is frozen, so there is nothing to regularize (the adapter has its own dropout, set in
    the recipe). Drawing the masks took a third of a training step on a CPU.
    """
    base = getattr(model, model.base_model_prefix, model)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the largest tensor in a folder's safetensors files."""
    largest, found = 0, "F32"
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(name)
                size = int(torch.Size(part.get_shape()).numel())
                if size > largest:
                    largest, found = size, part.get_dtype()
    return STORED_DTYPES.get(found, torch.float32)


def nf4_config(dtype: torch.dtype | str, skip: Iterable[str]) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantization (QLoRA, arXiv:2305.14314).

    Args:
        dtype: Compute dtype; `auto` for fp32.
        skip: Modules that are not quantized.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if dtype == "auto" else dtype,
        llm_int8_skip_modules=sorted(skip),
    )
