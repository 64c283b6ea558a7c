"""Inspects a base model before any GPU time is spent on it, and saves its tokenizer.

Job: `InspectJob`.

The saved tokenizer is used for training and ships with the model. It has the recipe's chat
template, and for a language model a pad token that does not also end answers.

`shape` holds, as integers: `hidden`, `layers`, `heads`, `kv_heads`, `head_dim`, `intermediate`,
`vocabulary` (rows of the embedding), `tied` (1 if the output layer shares the embedding),
`parameters`, `linear_parameters` (weights of `linear_modules`), `largest_linear` (weights of the
largest of them), `embedding_parameters` (of embedding and, if it is not shared, output),
`stored_bytes` (of one weight in the files).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.contracts.jobs import InspectJob, InspectResult
from tasks.runtime.program import Reporter, run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Their positions start after the pad token's id, so the first rows of the table are unused.
_OFFSET_FAMILIES = ("roberta", "camembert", "mpnet", "longformer", "xmod", "data2vec-text")


def main(job: InspectJob, reporter: Reporter) -> InspectResult:
    """See the module's description.

    Raises:
        BadModel: The model cannot be trained, or only by running its own code or loading a pickle.
    """
    folder = job.base
    config = check_files(folder)
    # torch takes seconds to import, so everything that can be checked without it comes first.
    from transformers import AutoConfig
    from transformers.utils import logging

    from tasks.models.classifier import load_tokenizer, save_tokenizer

    logging.set_verbosity_error()
    check_architecture(config, job.task)
    classes = job.task == "text-classification"
    warnings: list[str] = []
    if classes:
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = _language_tokenizer(folder, job.task, job.chat_template, warnings)
        warnings += _disagreements(folder, config, tokenizer)
    facts = _measure_model(folder, list(job.labels) if classes else None, len(tokenizer))
    save_tokenizer(tokenizer, job.tokenizer_out)
    return InspectResult(
        **facts,
        max_length=max_length(AutoConfig.from_pretrained(folder, trust_remote_code=False)),
        pad_token=tokenizer.pad_token or "",
        vocabulary=len(tokenizer),
        warnings=tuple(warnings),
    )


def check_files(folder: Path) -> dict[str, Any]:
    """Return the model's configuration, if the model can be loaded safely.

    Raises:
        BadModel: Configuration or safe weights are missing, or the weights are quantized.
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
    _refuse_quantized(config)
    return config


def _refuse_quantized(config: dict[str, Any]) -> None:
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "an unknown method")
        raise _refusal(
            f"a model that is already quantized ({method})",
            "full-precision weights, since training updates are added to them and shipped",
            "choose the model that it was quantized from, and set quantization: nf4 to save memory",
        )


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
                "convert them on a machine where you trust them: "
                "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
            )
        raise _refusal("no weights", "model.safetensors", "save the model with save_pretrained")


def check_architecture(config: dict[str, Any], task: str) -> None:
    """Refuse an architecture that transformers itself cannot use for the task.

    Raises:
        BadModel: The architecture needs remote code, has no classification head, or cannot generate
            text.
    """
    from transformers import (
        CONFIG_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

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
    if task == "text-classification":
        if CONFIG_MAPPING[kind] not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise _refusal(
                f"architecture '{kind}', which has no classification head in transformers",
                "an architecture with AutoModelForSequenceClassification",
                "choose an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT",
            )
    elif CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING or _is_encoder(config):
        raise _refusal(
            f"architecture '{kind}', which does not generate text from left to right",
            "an architecture with AutoModelForCausalLM",
            "choose a decoder such as Llama, Qwen, Mistral, Gemma or SmolLM, or set task: "
            "text-classification",
        )


def _is_encoder(config: dict[str, Any]) -> bool:
    """Whether the model is or has an encoder. transformers has causal versions of these too, but
    only as parts of other models."""
    from transformers import (
        CONFIG_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    kind = CONFIG_MAPPING[config["model_type"]]
    with_encoder = kind in MODEL_FOR_MASKED_LM_MAPPING
    with_encoder = with_encoder or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    return with_encoder and not config.get("is_decoder")


def max_length(config: Any) -> int | None:
    """Return the longest input in tokens; None if positions are relative or unlimited."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if getattr(text, "position_embedding_type", None) in ("relative_key", "relative_key_query"):
        return limit
    if not isinstance(limit, int) or limit <= 0 or hasattr(text, "relative_attention_num_buckets"):
        return None
    if any(family in text.model_type for family in _OFFSET_FAMILIES):
        return limit - (text.pad_token_id or 0) - 1
    return limit


# The tokenizer of a language model


def _language_tokenizer(
    folder: Path, task: str, chat_template: str, warnings: list[str]
) -> PreTrainedTokenizerBase:
    from tasks.chat.stop_tokens import no_end_token, set_pad_token
    from tasks.chat.template import template_of
    from tasks.chat.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(folder)
    if chat_template:
        _set_template(tokenizer, chat_template, warnings)
    if tokenizer.eos_token_id is None:
        raise no_end_token()
    if task != "completion":
        template_of(tokenizer)
    set_pad_token(tokenizer)
    return tokenizer


def _set_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str, warnings: list[str]
) -> None:
    """Replace the tokenizer's chat template with the recipe's.

    Raises:
        BadModel: The tokenizer lacks what chatml needs.
        BadRecipe: The template is not valid Jinja, or cannot render a question and an answer.
    """
    from tasks.chat.template import CHATML, template_of

    own = tokenizer.chat_template
    text = chat_template
    if chat_template == "chatml":
        _check_chatml(tokenizer)
        text = CHATML
        # Inference servers stop at the tokenizer's end token.
        tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = text
    try:
        template_of(tokenizer).render(
            [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
        )
    except BadModel as error:
        raise BadRecipe(
            "model.chat_template", error.found, error.expected, "correct it, or leave it out"
        ) from error
    if own and own != text:
        warnings.append(
            "the recipe's chat template (model.chat_template) replaces the tokenizer's own"
        )


def _check_chatml(tokenizer: PreTrainedTokenizerBase) -> None:
    wanted = ("<|im_start|>", "<|im_end|>")
    lacking = [
        token for token in wanted if len(tokenizer.encode(token, add_special_tokens=False)) != 1
    ]
    if lacking:
        raise BadModel(
            "model.chat_template",
            f"chatml for a tokenizer without {' and '.join(lacking)}",
            "a tokenizer with <|im_start|> and <|im_end|> as tokens",
            "choose a model whose tokenizer has them (most chat versions do), or set "
            "model.chat_template to a Jinja template that uses this tokenizer's own tokens",
        )


def _disagreements(
    folder: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Return warnings about special tokens that model and tokenizer define differently.

    Often the files do not belong together.
    """
    configs = {"config.json": config}
    file = folder / "generation_config.json"
    if file.is_file():
        configs[file.name] = json.loads(file.read_text())
    found = []
    for kind in ("bos", "eos"):
        own = getattr(tokenizer, f"{kind}_token_id")
        for name, settings in configs.items():
            ids = settings.get(f"{kind}_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            if own is not None and any(isinstance(item, int) for item in ids) and own not in ids:
                tokens = ", ".join(_named(tokenizer, item) for item in ids)
                found.append(
                    f"the tokenizer's {kind}_token is {_named(tokenizer, own)}, but {name} says "
                    f"{tokens}: the tokenizer's is used"
                )
    return found


def _named(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    known = isinstance(token, int) and 0 <= token < len(tokenizer)
    return f"{token} ({tokenizer.convert_ids_to_tokens(token)})" if known else str(token)


# The model


def _measure_model(folder: Path, labels: list[str] | None, vocabulary: int) -> dict[str, Any]:
    """Describe the model's modules and sizes without loading its weights. `labels` is None for a
    language model."""
    from tasks.models.adapter import linear_modules
    from tasks.models.causal import head_name, load_causal
    from tasks.models.classifier import load_classifier

    if labels is None:
        model, heads = load_causal(folder, device="meta", attention="eager"), []
        linear = linear_modules(model, [head_name(model)])
    else:
        model, heads = load_classifier(folder, labels, seed=0, device="meta")
        linear = linear_modules(model, heads)
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
        "linear_modules": linear,
        "head_modules": heads,
        "shape": _shape(folder, model, linear),
    }


def _shape(folder: Path, model: PreTrainedModel, linear: list[str]) -> dict[str, int]:
    from tasks.models.weights import stored_dtype

    config = model.config.get_text_config()
    # Models without attention (Mamba) have no heads.
    hidden, heads = config.hidden_size, getattr(config, "num_attention_heads", 0) or 0
    sizes = [model.get_submodule(name).weight.numel() for name in linear]
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    apart = output.weight.numel() if output is not None and not tied else 0
    return {
        "hidden": hidden,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or (hidden // heads if heads else 0),
        # Older families use other names; four times the width is the default.
        "intermediate": next(
            (
                size
                for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
                if isinstance(size := getattr(config, name, None), int)
            ),
            4 * hidden,
        ),
        "vocabulary": embedding.shape[0],
        "tied": int(tied),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "linear_parameters": sum(sizes),
        "largest_linear": max(sizes, default=0),
        "embedding_parameters": embedding.numel() + apart,
        "stored_bytes": stored_dtype(folder).itemsize,
    }


def _refusal(found: str, expected: str, fix: str) -> BadModel:
    return BadModel("model.uri", found, expected, fix)


if __name__ == "__main__":
    run(main, InspectJob)
