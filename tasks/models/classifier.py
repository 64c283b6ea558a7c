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
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tasks.chat.tokenizer import read_tokenizer
from tasks.contracts.errors import BadModel
from tasks.models.load_errors import reading_base
from tasks.models.weights import guard_4bit, nf4, place

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
