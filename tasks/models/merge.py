"""Merging an adapter into its base, in host memory.

A device that has room to train on a quantised base need not have room for the merged model, which
is four times as large. So it only ever holds what it held in training, and one layer more.
"""

from __future__ import annotations

import warnings

import torch
from accelerate.hooks import remove_hook_from_submodules
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def read_on(device: str, quantization: str) -> str:
    """Where the base is read that an adapter is to be merged into.

    An adapter that was trained on a quantised base belongs to the very weights that it was trained
    on, and another device may round ties otherwise. Others are the same everywhere.

    Args:
        device: That the adapter was trained on: `cpu` or `cuda`.
        quantization: Of the base: `none` or `nf4`.
    """
    return device if quantization == "nf4" else "cpu"


def bring_home(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Dequantise a model, each layer where it is, and move it to host memory.

    The same weights as `PreTrainedModel.dequantize` makes, layer by layer. What was a `Conv1D` is
    one again: its files have such weights the other way round.

    Args:
        model: A base without an adapter, quantised or not; not to be used any more.
        dtype: That quantised weights are computed in.
    """
    remove_hook_from_submodules(model)
    if getattr(model, "hf_quantizer", None) is not None:
        # Slow to import, and only needed here.
        from bitsandbytes.nn import Linear4bit

        # Their names only: a module that is held on to is not given back.
        names = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
        for name in names:
            model.set_submodule(name, _plain(model.get_submodule(name), dtype))
        model.hf_quantizer.remove_quantization_config(model)
    return model.to("cpu")


def merge(model: torch.nn.Module, dtype: torch.dtype) -> PreTrainedModel:
    """Add the adapter to its base, layer by layer, in fp32, and round each once.

    Only one layer at a time is there in fp32: a model of 16 bits needs no more memory than its
    own size.

    Args:
        model: Adapter on a base that is not quantised (any more).
        dtype: Of the result.
    """
    # peft takes seconds to import, and what only scores needs none of it.
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            weight.data = weight.data.float()
            module.merge(safe_merge=True)
            weight = module.get_base_layer().weight
            weight.data = weight.data.to(dtype)
    with warnings.catch_warnings():
        # That the layers are merged already is what peft warns of.
        warnings.simplefilter("ignore")
        return model.merge_and_unload().to(dtype)


def _plain(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A 4-bit layer's like without quantisation, its weights in host memory."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(module.weight).to(dtype).to("cpu")
    turned = issubclass(module.source_cls, Conv1D)
    with torch.device("meta"):
        if turned:
            plain = Conv1D(module.out_features, module.in_features)
        else:
            plain = torch.nn.Linear(
                module.in_features, module.out_features, bias=module.bias is not None
            )
    weight = weight.T.contiguous() if turned else weight
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = module.bias
    # Such a layer and its weights name each other: else they would stay until they are collected.
    module.weight = None
    return plain
