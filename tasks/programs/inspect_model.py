"""Looks at a base model before anything is spent on it, and keeps its tokenizer.

Job: `base` (folder), `tokenizer_out` (folder to write), `labels`.
Result: the fields of `tasks.contracts.artifact.Inspected` that concern the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.errors import BadModel
from tasks.programs.protocol import Reporter, run

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Positions are counted from the pad token's id on, so that many rows of the table are unused.
_OFFSET_FAMILIES = ("roberta", "camembert", "mpnet", "longformer", "xmod", "data2vec-text")


def main(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """See the module's description.

    Raises:
        BadModel: The model cannot be trained, or only by running its code or reading a pickle.
    """
    folder = Path(job["base"])
    config = check_files(folder)
    # torch takes seconds to load: what can be refused without it is refused before.
    from transformers import AutoConfig
    from transformers.utils import logging

    from tasks.programs.model import load_tokenizer, save_tokenizer

    logging.set_verbosity_error()
    check_architecture(config)
    tokenizer = load_tokenizer(folder)
    facts = _look_inside(folder, job["labels"], len(tokenizer))
    save_tokenizer(tokenizer, Path(job["tokenizer_out"]))
    return facts | {
        "max_length": max_length(AutoConfig.from_pretrained(folder, trust_remote_code=False)),
        "pad_token": tokenizer.pad_token,
        "vocabulary": len(tokenizer),
    }


def check_files(folder: Path) -> dict[str, Any]:
    """The model's configuration, if the folder holds what can be loaded safely.

    Raises:
        BadModel: Configuration or safe weights are missing.
    """
    if not (folder / "config.json").is_file():
        raise _refusal(
            "no config.json",
            "a model's folder",
            "point model.uri at the folder of a model that save_pretrained wrote",
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise _refusal(
            f"a config.json that is not JSON ({error})",
            "a model's configuration",
            "download or save the model again",
        ) from None
    _check_weights(folder)
    return config


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = set(json.loads(index.read_text())["weight_map"].values())
        lacking = sorted(part for part in parts if not (folder / part).is_file())
        if lacking:
            raise _refusal(
                f"no {', '.join(lacking)}",
                "every file that model.safetensors.index.json lists",
                "download or save the model again",
            )
    elif not (folder / "model.safetensors").is_file():
        if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
            raise _refusal(
                "only pickled weights, which can run any code when they are loaded",
                "safetensors: pickled weights are never loaded",
                "convert them on a machine that may: "
                "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
            )
        raise _refusal("no weights", "model.safetensors", "save the model with save_pretrained")


def check_architecture(config: dict[str, Any]) -> None:
    """Refuse what transformers cannot classify with by itself.

    Raises:
        BadModel: The architecture needs remote code, or has no classification head.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    kind = config.get("model_type", "")
    if kind not in CONFIG_MAPPING:
        found = f"architecture '{kind}', which transformers does not have"
        if "auto_map" in config:
            found += " (its code comes with the model, and is never run)"
        raise _refusal(
            found,
            "an architecture of transformers",
            "choose a model that loads without trust_remote_code",
        )
    if CONFIG_MAPPING[kind] not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise _refusal(
            f"architecture '{kind}', which has no classification head in transformers",
            "an architecture with AutoModelForSequenceClassification",
            "choose an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT",
        )


def max_length(config: Any) -> int | None:
    """The longest input in tokens; None where positions are relative or unlimited."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if getattr(text, "position_embedding_type", None) in ("relative_key", "relative_key_query"):
        return limit
    if not isinstance(limit, int) or limit <= 0 or hasattr(text, "relative_attention_num_buckets"):
        return None
    if any(family in text.model_type for family in _OFFSET_FAMILIES):
        return limit - (text.pad_token_id or 0) - 1
    return limit


def _look_inside(folder: Path, labels: list[str], vocabulary: int) -> dict[str, Any]:
    from tasks.programs.model import linear_modules, load_classifier

    model, heads = load_classifier(folder, labels, seed=0, device="meta")
    rows = model.get_input_embeddings().weight.shape[0]
    if vocabulary > rows:
        raise _refusal(
            f"a tokenizer with {vocabulary:,} ids for a model with {rows:,} embedding rows",
            "no more ids than rows",
            "use the tokenizer that the model was trained with, or resize the embeddings",
        )
    return {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "linear_modules": linear_modules(model, heads),
        "head_modules": heads,
    }


def _refusal(found: str, expected: str, fix: str) -> BadModel:
    return BadModel("model.uri", found, expected, fix)


if __name__ == "__main__":
    run(main)
