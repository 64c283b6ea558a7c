"""Load sequence classifiers, and load and save tokenizers.

Loading never runs a model's own code and never reads a pickle. Saving gives the same bytes for the
same content, whatever the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tasks.chat.tokenizer import read_tokenizer
from tasks.contracts.errors import BadModel
from tasks.models.load_errors import base_load_errors
from tasks.models.weights import (
    keep_4bit_trainable,
    local_device,
    nf4_config,
    supported_attention,
)

# Settings that the last call of load or save left behind: they describe that call, not the
# tokenizer, and differ between machines.
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
        BadModel: The tokenizer cannot be read, is slow, or has no pad token. Choosing one for it
            would be a guess, and training, scoring and serving might guess differently.
    """
    tokenizer = read_tokenizer(folder)
    if tokenizer.pad_token is None:
        raise BadModel(
            "model.uri",
            "a tokenizer without a pad token",
            "a pad token, for batches of unequal length",
            "set pad_token in its tokenizer_config.json to an unused token, or add one "
            "(tokenizer.add_special_tokens({'pad_token': '[PAD]'})) and resize the "
            "model's embeddings",
        )
    return tokenizer


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int | None = None
) -> None:
    """Save a tokenizer without traces of earlier calls.

    Args:
        tokenizer: A fast tokenizer.
        folder: The target folder.
        max_length: Tokens to which `truncation=True` cuts; None keeps the tokenizer's own value.
    """
    # Truncation and padding of the last call would be saved with it.
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
    """Load a base model with a classification head for the given labels.

    The head is initialized from the seed, unless the base already classifies into the same labels
    in the same order.

    Args:
        folder: The base model.
        labels: The labels, in the order of their ids.
        seed: Seed of a new head.
        fresh_head: Whether to initialize a new head in any case.
        dtype: Dtype of unquantized weights; `auto` for that of the files.
        quantization: `none` or `nf4` (with double quantization).
        head_modules: Modules that are not quantized.
        device: `cpu`, `cuda` or `meta`.
        attention: The attention implementation of transformers.

    Returns:
        The model, in evaluation mode, and the names of its head's modules.

    Raises:
        BadModel: The weights cannot be loaded, or belong to another architecture.
    """
    labels = list(labels)
    options: dict[str, Any] = {"dtype": dtype}
    if device != "cpu" or quantization == "nf4":
        options["device_map"] = {"": local_device(device)}
    if quantization == "nf4":
        options["quantization_config"] = nf4_config(dtype, head_modules)
    torch.manual_seed(seed)
    model, missing = _load(folder, labels, attention, options)
    heads = _new_modules(model, missing)
    if device != "meta" and (fresh_head or _labels_of(folder) != labels):
        _initialize(model, heads, seed)
    keep_4bit_trainable(model)
    return model, heads


def _load(
    folder: Path, labels: list[str], attention: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the tensors that its files lack or have in another shape."""
    with base_load_errors("AutoModelForSequenceClassification"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        mapping = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=supported_attention(attention, config, mapping),
            **options,
        )
    mismatched = {
        entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]
    }
    return model, set(report["missing_keys"]) | mismatched


def _new_modules(model: PreTrainedModel, missing: set[str]) -> list[str]:
    """The modules of the head: those outside the base, and those that its files lack (often a
    pooler)."""
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
    return [str(label) for _, label in sorted(config.get("id2label", {}).items(), key=_label_id)]


def _label_id(item: tuple[str, str]) -> int:
    return int(item[0])


@torch.no_grad()
def _initialize(model: PreTrainedModel, heads: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    for head in heads:
        for module in model.get_submodule(head).modules():
            for part in (module, *module.parameters(recurse=False)):
                part._is_hf_initialized = False
            model._init_weights(module)
