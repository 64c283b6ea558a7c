"""Models for the programs: reading a base, attaching an adapter, writing what ships.

Loading never runs a model's own code and never reads a pickle. What is written is the same bytes
for the same weights, wherever it is written to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from tasks.errors import BadModel, BadRecipe
from tasks.learning import ranks
from tasks.learning.reading import reading_base
from tasks.learning.tokenizer import read_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Left in the tokenizer's settings by whoever loaded or saved it last: they say how that was done,
# not what the tokenizer is, and differ from machine to machine.
_CALL_SETTINGS = (
    "max_length",
    "stride",
    "truncation_strategy",
    "pad_to_multiple_of",
    "is_local",
    "local_files_only",
    "name_or_path",
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a fast tokenizer that can pad.

    Raises:
        BadModel: The tokenizer cannot be read, is slow, or has no pad token: choosing one for it
            would be a guess that training, scoring and serving might each make differently.
    """
    tokenizer = read_tokenizer(folder)
    if tokenizer.pad_token is None:
        raise BadModel(
            "model.uri",
            "a tokenizer without a pad token",
            "a pad token, for batches of unequal length",
            "set pad_token in its tokenizer_config.json to a token that is not used otherwise, or "
            "add one (tokenizer.add_special_tokens({'pad_token': '[PAD]'})) and resize the "
            "model's embeddings",
        )
    return tokenizer


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int | None = None
) -> None:
    """Write a tokenizer, whatever it was used for before.

    Args:
        tokenizer: A fast tokenizer.
        folder: Where to.
        max_length: Tokens that a consumer's `truncation=True` shall cut to.
    """
    # The last call's truncation and padding are part of the saved file unless they are reset.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    for name in _CALL_SETTINGS:
        tokenizer.init_kwargs.pop(name, None)
    if max_length is not None:
        tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)


def load_classifier(
    folder: Path,
    labels: Iterable[str],
    *,
    seed: int,
    fresh_head: bool = False,
    dtype: torch.dtype | str = "auto",
    quantization: str = "none",
    head_modules: Iterable[str] = (),
    device: str = "cpu",
    attention: str = "sdpa",
) -> tuple[PreTrainedModel, list[str]]:
    """Read a base model with a head for the given labels.

    The head is new, drawn from the seed, unless the base already classifies into the very same
    labels in the same order.

    Args:
        folder: The base model.
        labels: The labels, in the order of their ids.
        seed: Of the new head.
        fresh_head: Draw a new head even then.
        dtype: Of the weights that are not quantised; `auto` for that of the files.
        quantization: `none` or `nf4` (with double quantisation).
        head_modules: Modules that are never quantised.
        device: `cpu`, `cuda` or `meta`.
        attention: The attention implementation of transformers.

    Returns:
        The model, in evaluation mode, and the names of its head's modules.

    Raises:
        BadModel: The weights cannot be read, or are not this architecture's.
    """
    labels = list(labels)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if device != "cpu" or quantization == "nf4":
        options["device_map"] = {"": place(device)}
    if quantization == "nf4":
        options["quantization_config"] = nf4(dtype, head_modules)
    torch.manual_seed(seed)
    model, missing = _read(folder, labels, options)
    heads = _new_modules(model, missing)
    if device != "meta" and (fresh_head or _labels_of(folder) != labels):
        _draw_anew(model, heads, seed)
    guard_4bit(model)
    return model, heads


def place(device: str) -> str:
    """A device as this process has it: of several processes, each has a GPU of its own.

    Args:
        device: `cpu`, `cuda` or `meta`.
    """
    several = device == "cuda" and ranks.count() > 1
    return f"cuda:{ranks.local_rank()}" if several else device


def guard_4bit(model: torch.nn.Module) -> None:
    """Keep 4-bit layers trainable on processors with AVX512-BF16.

    There, bitsandbytes repacks the weights at the first forward in evaluation mode, and training
    after that silently loses the gradients through them.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def silence_dropout(model: PreTrainedModel) -> None:
    """Turn off dropout within the base, and leave it in the head.

    The base is frozen, so there is nothing in it to regularise (the adapter has a dropout of its
    own, by recipe); drawing the random masks took a third of a training step on a CPU.
    """
    base = getattr(model, model.base_model_prefix, model)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def linear_modules(model: torch.nn.Module, heads: Iterable[str]) -> list[str]:
    """Full names of the linear layers that an adapter may target, in the model's order."""
    inside = tuple(f"{head}." for head in heads)
    return [
        name
        for name, module in model.named_modules()
        # GPT-2 and its kin write their linear layers as Conv1D.
        if isinstance(module, torch.nn.Linear | Conv1D) and not f"{name}.".startswith(inside)
    ]


def attach_lora(
    model: PreTrainedModel,
    lora: dict[str, Any],
    heads: Iterable[str],
    seed: int,
    task_type: str = "SEQ_CLS",
    apart: Iterable[str] = (),
) -> torch.nn.Module:
    """Wrap a model in a new adapter; adapter and head train in fp32, all else is frozen.

    Args:
        model: The base model.
        lora: `LoraRecipe` as plain values.
        heads: Modules that are trained in full, besides `lora["modules_to_save"]`.
        seed: Of the adapter's first values.
        task_type: As peft names it.
        apart: Modules that get no adapter, besides those that are trained in full.

    Raises:
        BadRecipe: A target or module to save does not exist.
    """
    # peft takes seconds to import, and what only examines or scores needs none of it.
    from peft import LoraConfig, get_peft_model

    heads = sorted({*heads, *lora["modules_to_save"]})
    config = LoraConfig(
        task_type=task_type,
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        use_rslora=lora.get("rslora", False),
        use_dora=lora.get("dora", False),
        target_modules=_targets(model, lora["target_modules"], [*heads, *apart]),
        modules_to_save=_known(model, heads),
    )
    silence_dropout(model)
    # Drawn from a seed of its own: what was drawn for the head must not move it.
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def save_adapter(model: torch.nn.Module, file: Path) -> None:
    """Write the trained tensors (adapter and head) to one safetensors file, whole or not at all."""
    # peft takes seconds to import, and what only examines or scores needs none of it.
    from peft import get_peft_model_state_dict

    state = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in sorted(
            get_peft_model_state_dict(model, state_dict=held_in_full(model)).items()
        )
    }
    partial = file.with_suffix(".partial")
    save_file(state, partial, metadata={"format": "pt"})
    partial.replace(file)


def held_in_full(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The tensors of a shared model that each process has in full: its adapter's.

    Returns:
        They by name; None for a model that is not shared. To save the others, peft would put them
        together in every process.
    """
    state = model.state_dict()
    full = {name: tensor for name, tensor in state.items() if not isinstance(tensor, DTensor)}
    return full if len(full) < len(state) else None


def load_adapter(model: torch.nn.Module, file: Path) -> None:
    """Read what `save_adapter` wrote into a model of the same shape."""
    # peft takes seconds to import, and what only examines or scores needs none of it.
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, load_file(file))


def save_merged(model: PreTrainedModel, folder: Path) -> None:
    """Write an ordinary model as safetensors, without a trace of where its base lay."""
    model.config._name_or_path = ""
    model.eval().save_pretrained(folder, max_shard_size="5GB")
    open_to_readers(folder)


def open_to_readers(folder: Path) -> None:
    """Let others read what was written: safetensors makes files that only their owner can."""
    for file in folder.iterdir():
        file.chmod(0o644)


def save_shipped_adapter(
    model: torch.nn.Module, adapter: Path, folder: Path, pin: dict[str, str], quantization: str
) -> None:
    """Write adapter, head and configuration, with the base by reference.

    Args:
        model: The adapter's model, for its configuration.
        adapter: What `save_adapter` wrote.
        folder: Where to.
        pin: The base's `uri` and `digest`.
        quantization: How the base was quantised when the adapter was trained on it: on any other
            base the adapter is another model.
    """
    name, revision = _base_reference(pin)
    config = model.peft_config["default"].to_dict() | {
        "base_model_name_or_path": name,
        "revision": revision,
        "inference_mode": True,
    }
    for key in ("target_modules", "modules_to_save"):
        config[key] = sorted(set(config[key]))
    base = {"reference": name, "digest": pin["digest"], "quantization": quantization}
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in (("adapter_config.json", config), ("base.json", base)):
        (folder / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    save_file(load_file(adapter), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    plain = model.get_base_model().config
    plain._name_or_path = ""
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    plain.save_pretrained(folder)
    open_to_readers(folder)


def stored_dtype(folder: Path) -> torch.dtype:
    """Number format of the largest tensor in a folder's safetensors files."""
    largest, found = 0, "F32"
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict: it has no other iteration
                part = tensors.get_slice(name)
                size = int(torch.Size(part.get_shape()).numel())
                if size > largest:
                    largest, found = size, part.get_dtype()
    return STORED_DTYPES.get(found, torch.float32)


def _read(
    folder: Path, labels: list[str], options: dict[str, Any]
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the tensors that its files lack."""
    with reading_base("AutoModelForSequenceClassification"):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    mismatched = {
        entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]
    }
    return model, set(report["missing_keys"]) | mismatched


def nf4(dtype: torch.dtype | str, skip: Iterable[str]) -> BitsAndBytesConfig:
    """Quantisation to 4 bits with double quantisation (QLoRA, arXiv:2305.14314).

    Args:
        dtype: That the layers compute in; `auto` for fp32.
        skip: Modules that are never quantised.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if dtype == "auto" else dtype,
        llm_int8_skip_modules=sorted(skip),
    )


def _new_modules(model: PreTrainedModel, missing: set[str]) -> list[str]:
    """The head: what lies outside the base, and what the base's files lack (a pooler, often)."""
    prefix = model.base_model_prefix
    outside = {
        name
        for name, child in model.named_children()
        if name != prefix and next(child.parameters(), None) is not None
    }
    inner = {name.rpartition(".")[0] for name in missing if name.partition(".")[0] not in outside}
    lost = sum(model.get_parameter(name).numel() for name in missing if name.startswith(prefix))
    if lost > 0.5 * sum(parameter.numel() for parameter in model.parameters()):
        raise BadModel(
            "model.uri",
            "weights of another architecture: most of the model's tensors are missing",
            f"the weights of a {type(model).__name__}",
            "check that config.json and the weights belong together",
        )
    return sorted(outside | inner)


def _labels_of(folder: Path) -> list[str]:
    config = json.loads((folder / "config.json").read_text())
    return [str(label) for _, label in sorted(config.get("id2label", {}).items(), key=_number)]


def _number(item: tuple[str, str]) -> int:
    return int(item[0])


@torch.no_grad()
def _draw_anew(model: PreTrainedModel, heads: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    for head in heads:
        for module in model.get_submodule(head).modules():
            for part in (module, *module.parameters(recurse=False)):
                part._is_hf_initialized = False
            model._init_weights(module)


def _targets(model: PreTrainedModel, wanted: Iterable[str], heads: list[str]) -> list[str]:
    linear = linear_modules(model, heads)
    if tuple(wanted) == ("all-linear",):
        wanted = linear
    chosen = [name for name in linear if any(f".{name}".endswith(f".{end}") for end in wanted)]
    unused = [end for end in wanted if not any(f".{name}".endswith(f".{end}") for name in linear)]
    if unused or not chosen:
        raise BadRecipe(
            "lora.target_modules",
            f"no linear module named {', '.join(unused) or 'at all'}",
            f"some of: {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}",
            "name modules of this model, or say all-linear",
        )
    return chosen


def _known(model: PreTrainedModel, heads: list[str]) -> list[str]:
    names = [name for name, _ in model.named_modules()]
    for head in heads:
        if not any(f".{name}".endswith(f".{head}") for name in names):
            raise BadRecipe(
                "lora.modules_to_save",
                f"no module named {head}",
                "modules of the base model",
                "leave it out: the new classification head is always trained in full",
            )
    return heads


def _base_reference(pin: dict[str, str]) -> tuple[str, str | None]:
    """What a consumer resolves the base by: never a path of the machine it was trained on."""
    uri = pin["uri"]
    if uri.startswith("hf://"):
        name, _, revision = uri.removeprefix("hf://").partition("@")
        return name, revision.partition("/")[0] or None
    if uri.startswith(("s3://", "package:")):
        return uri, None
    return f"sha256:{pin['digest']}", None
