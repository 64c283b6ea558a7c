"""Merge an adapter into its base, in host memory.

A device that can train on a quantized base may be too small for the merged model, which is four
times as large. So at most one dequantized layer is on the device at a time.
"""

from __future__ import annotations

import warnings

import torch
from accelerate.hooks import remove_hook_from_submodules
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def merge_device(device: str, quantization: str) -> str:
    """The device on which to load the base that an adapter is merged into.

    A quantized base is loaded on the training device: the adapter fits the exact weights that it
    was trained on, and another device may round ties differently. An unquantized base has the same
    weights everywhere and is loaded on the CPU.

    Args:
        device: The device that the adapter was trained on: `cpu` or `cuda`.
        quantization: Quantization of the base: `none` or `nf4`.
    """
    return device if quantization == "nf4" else "cpu"


def dequantize_to_host(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Dequantize a model layer by layer, each on its device, and move it to host memory.

    The weights equal those of `PreTrainedModel.dequantize`. A layer that was a `Conv1D` before
    quantization becomes one again: its files store such weights transposed.

    Args:
        model: A base without an adapter, quantized or not. It is consumed.
        dtype: Compute dtype of the quantized weights, and dtype of the result.
    """
    remove_hook_from_submodules(model)
    if getattr(model, "hf_quantizer", None) is not None:
        # Slow to import, and only needed here.
        from bitsandbytes.nn import Linear4bit

        # Names only: a reference to a module would keep its memory.
        names = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
        for name in names:
            model.set_submodule(name, dequantize_layer(model.get_submodule(name), dtype))
        model.hf_quantizer.remove_quantization_config(model)
    return model.to("cpu")


def merge(model: torch.nn.Module, dtype: torch.dtype) -> PreTrainedModel:
    """Add an adapter to its base in fp32, layer by layer, and round each layer once.

    Only one layer at a time is held in fp32, so merging a 16-bit model needs hardly more memory
    than the model itself.

    Args:
        model: A model with an adapter; its base is not quantized (any more).
        dtype: The dtype of the merged model.
    """
    # peft takes seconds to import, and programs that only score do not need it.
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            weight.data = weight.data.float()
            module.merge(safe_merge=True)
            weight = module.get_base_layer().weight
            weight.data = weight.data.to(dtype)
    with warnings.catch_warnings():
        # peft warns that the layers are merged already.
        warnings.simplefilter("ignore")
        return model.merge_and_unload().to(dtype)


def dequantize_layer(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The unquantized equivalent of a 4-bit layer, its weights in host memory."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(module.weight).to(dtype).to("cpu")
    transposed = issubclass(module.source_cls, Conv1D)
    with torch.device("meta"):
        if transposed:
            plain = Conv1D(module.out_features, module.in_features)
        else:
            plain = torch.nn.Linear(
                module.in_features, module.out_features, bias=module.bias is not None
            )
    weight = weight.T.contiguous() if transposed else weight
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = module.bias
    # A 4-bit layer and its weights refer to each other: without this they would stay in memory
    # until the garbage collector runs.
    module.weight = None
    return plain
