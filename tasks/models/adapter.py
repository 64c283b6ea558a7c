"""Attach, save, load and export LoRA adapters."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from tasks.contracts.errors import BadRecipe
from tasks.contracts.jobs import PinnedBase
from tasks.contracts.recipe_training import LoraRecipe
from tasks.models.load_errors import one_line
from tasks.models.weights import disable_base_dropout

# What peft takes for the experts of transformers 4, which were linear layers: in transformers 5
# they are one parameter, and layers of these names are something else, such as a shared expert
# (peft.utils.transformers_weight_conversion).
_NAMES_OF_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
# What peft refuses in models with Mamba layers (peft.tuners.tuners_utils).
_MAMBA_TYPES = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_MAMBA_NAMES = frozenset({"out_proj", "conv1d"})


def linear_modules(model: torch.nn.Module, heads: Iterable[str]) -> list[str]:
    """Full names of the linear layers that an adapter can target, in the model's order.

    Args:
        model: The base model.
        heads: Modules whose layers are left out.
    """
    inside = tuple(f"{head}." for head in heads)
    left_out = set(unadaptable_modules(model))
    return [
        name
        for name, module in model.named_modules()
        if _is_linear(module) and not f"{name}.".startswith(inside) and name not in left_out
    ]


def unadaptable_modules(model: torch.nn.Module) -> list[str]:
    """Full names of the linear layers for which peft has no adapter in this architecture."""
    names = _unadaptable_names(model)
    return [
        name
        for name, module in model.named_modules()
        if _is_linear(module) and name.rpartition(".")[2] in names
    ]


def unadaptable_warnings(model: torch.nn.Module) -> list[str]:
    """A warning about the layers that get no adapter; none if all can have one."""
    left_out = unadaptable_modules(model)
    if not left_out:
        return []
    last_names = sorted({name.rpartition(".")[2] for name in left_out})
    return [
        f"{len(left_out)} linear layers get no adapter ({', '.join(last_names)}): peft has none "
        "for layers of these names in this architecture"
    ]


def _unadaptable_names(model: torch.nn.Module) -> frozenset[str]:
    if any(part.dim() == 3 and "experts" in name for name, part in model.named_parameters()):
        return _NAMES_OF_EXPERTS
    mamba = getattr(model.config, "model_type", "") in _MAMBA_TYPES
    return _MAMBA_NAMES if mamba else frozenset()


def _is_linear(module: torch.nn.Module) -> bool:
    # GPT-2 and similar models implement linear layers as Conv1D.
    # A router of experts may be a linear layer that returns more than its output.
    return isinstance(module, torch.nn.Linear | Conv1D) and "Router" not in type(module).__name__


def attach_lora(
    model: PreTrainedModel,
    lora: LoraRecipe,
    heads: Iterable[str],
    seed: int,
    task_type: str = "SEQ_CLS",
    exclude: Iterable[str] = (),
) -> torch.nn.Module:
    """Wrap a model in a new adapter. Adapter and head train in fp32; the rest is frozen.

    Args:
        model: The base model.
        lora: The adapter's settings.
        heads: Modules that are trained in full, in addition to `lora.modules_to_save`.
        seed: Seed of the adapter's initial values.
        task_type: peft's task type.
        exclude: More modules that get no adapter.

    Raises:
        BadRecipe: A target or module to save does not exist, or peft does not support a setting.
    """
    # peft takes seconds to import, and programs that only inspect or score do not need it.
    from peft import LoraConfig, get_peft_model

    heads = sorted({*heads, *lora.modules_to_save})
    config = LoraConfig(
        task_type=task_type,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=_targets(model, lora.target_modules, [*heads, *exclude]),
        modules_to_save=_existing(model, heads),
    )
    disable_base_dropout(model)
    # Seeded separately: random numbers drawn for the head must not change the adapter.
    torch.manual_seed(seed)
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        # Such as dropout on the experts of a mixture.
        raise BadRecipe(
            "lora.dropout" if "dropout" in str(error) else "lora",
            f"what peft does not support for this architecture: {one_line(error)}",
            "settings that it supports",
            "set lora.dropout to 0" if "dropout" in str(error) else "change them as it says",
        ) from error
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def save_adapter(model: torch.nn.Module, file: Path) -> None:
    """Save the trained tensors (adapter and head) to one safetensors file, atomically."""
    # Slow to import, see `attach_lora`.
    from peft import get_peft_model_state_dict

    state = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in sorted(
            get_peft_model_state_dict(model, state_dict=unsharded_state(model)).items()
        )
    }
    partial = file.with_suffix(".partial")
    save_file(state, partial, metadata={"format": "pt"})
    partial.replace(file)


def unsharded_state(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The tensors of a sharded model that every process holds in full: those of its adapter.

    Returns:
        Tensors by name; None for a model that is not sharded. To save sharded tensors, peft would
        gather them in every process.
    """
    state = model.state_dict()
    full = {name: tensor for name, tensor in state.items() if not isinstance(tensor, DTensor)}
    return full if len(full) < len(state) else None


def load_adapter(model: torch.nn.Module, file: Path) -> None:
    """Load tensors saved by `save_adapter` into a model with the same adapter."""
    # Slow to import, see `attach_lora`.
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, load_file(file))


def save_merged(model: PreTrainedModel, folder: Path) -> None:
    """Save a model without an adapter as safetensors, without the path of its base."""
    model.config._name_or_path = ""
    model.eval().save_pretrained(folder, max_shard_size="5GB")
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """Make the files of a folder readable for all: safetensors creates them for the owner only."""
    for file in folder.iterdir():
        file.chmod(0o644)


def export_adapter(
    model: torch.nn.Module, adapter: Path, folder: Path, pin: PinnedBase, quantization: str
) -> None:
    """Export adapter, head and configuration, with a reference to the base.

    Args:
        model: The model with the adapter, for its configuration.
        adapter: The file written by `save_adapter`.
        folder: The target folder.
        pin: The base model.
        quantization: Quantization of the base in training. On a base with another quantization the
            adapter gives another model.
    """
    name, revision = _base_reference(pin)
    config = model.peft_config["default"].to_dict() | {
        "base_model_name_or_path": name,
        "revision": revision,
        "inference_mode": True,
    }
    for key in ("target_modules", "modules_to_save"):
        config[key] = sorted(set(config[key]))
    base = {"reference": name, "digest": pin.digest, "quantization": quantization}
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in (("adapter_config.json", config), ("base.json", base)):
        (folder / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    save_file(load_file(adapter), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    plain = model.get_base_model().config
    plain._name_or_path = ""
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    plain.save_pretrained(folder)
    make_readable(folder)


def _targets(model: PreTrainedModel, wanted: Iterable[str], heads: list[str]) -> list[str]:
    linear = linear_modules(model, heads)
    if tuple(wanted) == ("all-linear",):
        wanted = linear
    chosen = [name for name in linear if any(f".{name}".endswith(f".{end}") for end in wanted)]
    unused = [end for end in wanted if not any(f".{name}".endswith(f".{end}") for name in linear)]
    if unused or not chosen:
        raise BadRecipe(
            "lora.target_modules",
            f"no linear layer named {', '.join(unused)}" if unused else "no linear layers",
            f"some of: {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}",
            "name linear layers of this model, or set it to all-linear",
        )
    return chosen


def _existing(model: PreTrainedModel, heads: list[str]) -> list[str]:
    names = [name for name, _ in model.named_modules()]
    for head in heads:
        if not any(f".{name}".endswith(f".{head}") for name in names):
            raise BadRecipe(
                "lora.modules_to_save",
                f"no module named {head}",
                "modules of the base model",
                "leave it out: a new classification head is always trained in full",
            )
    return heads


def _base_reference(pin: PinnedBase) -> tuple[str, str | None]:
    """Name and revision by which a consumer resolves the base: never a path on this machine."""
    uri = pin.uri
    if uri.startswith("hf://"):
        name, _, revision = uri.removeprefix("hf://").partition("@")
        return name, revision.partition("/")[0] or None
    if uri.startswith(("s3://", "package:")):
        return uri, None
    return f"sha256:{pin.digest}", None
