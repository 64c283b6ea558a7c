"""Inspects a base model before any GPU time is spent on it, and saves its tokenizer.

Job: `InspectJob`.

The saved tokenizer is used for training and ships with the model. It has the recipe's chat
template, and for a language model a pad token that is not a stop token.

`shape` in the result holds these integers: `hidden`, `layers`, `heads`, `kv_heads`, `head_dim`,
`intermediate`, `vocabulary` (rows of the embedding), `tied` (1 if the output layer shares the
embedding),
`parameters`, `linear_parameters` (weights of `linear_modules`), `largest_linear` (weights of the
largest of them), `embedding_parameters` (of the embedding and, if not tied, the output layer),
`stored_bytes` (bytes per weight in the files).
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.contracts.jobs import InspectJob, InspectResult
from tasks.runtime.program import Reporter, run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Their position ids start after the pad token id, so the first rows of the table are unused.
_OFFSET_FAMILIES = ("roberta", "camembert", "mpnet", "longformer", "xmod", "data2vec-text")


def main(job: InspectJob, reporter: Reporter) -> InspectResult:
    """Inspect the model and save its tokenizer; see the module docstring.

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
    classification = job.task == "text-classification"
    warnings: list[str] = []
    if classification:
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = _language_tokenizer(folder, job.task, job.chat_template, warnings)
        warnings += _special_token_conflicts(folder, config, tokenizer)
    labels = list(job.labels) if classification else None
    model_facts, takes_token_types = _describe_model(folder, labels, len(tokenizer), warnings)
    if not takes_token_types:
        _drop_token_types(tokenizer)
    save_tokenizer(tokenizer, job.tokenizer_out)
    return InspectResult(
        **model_facts,
        max_length=max_length(AutoConfig.from_pretrained(folder, trust_remote_code=False)),
        pad_token=tokenizer.pad_token or "",
        vocabulary=len(tokenizer),
        warnings=tuple(warnings),
    )


def check_files(folder: Path) -> dict[str, Any]:
    """Return the model's configuration after checking that its weights can be loaded safely.

    Raises:
        BadModel: Configuration or safe weights are missing, or the weights are quantized.
    """
    if not (folder / "config.json").is_file():
        raise BadModel(
            "model.uri",
            "no config.json",
            "a model folder",
            "point model.uri at a folder that save_pretrained wrote",
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise BadModel(
            "model.uri",
            f"a config.json that is not JSON ({error})",
            "a model configuration",
            "download or save the model again",
        ) from None
    _check_weights(folder)
    _refuse_quantized(config)
    return config


def _refuse_quantized(config: dict[str, Any]) -> None:
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "an unknown method")
        raise BadModel(
            "model.uri",
            f"a model that is already quantized ({method})",
            "full-precision weights, since training updates are added to them and shipped",
            "choose the model that it was quantized from, and set quantization: nf4 to save memory",
        )


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(part for part in parts if not (folder / part).is_file())
        if missing:
            raise BadModel(
                "model.uri",
                f"no {', '.join(missing)}",
                "every file that model.safetensors.index.json lists",
                "download or save the model again",
            )
    elif not (folder / "model.safetensors").is_file():
        if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
            raise BadModel(
                "model.uri",
                "only pickled weights, which can run arbitrary code when loaded",
                "safetensors: pickled weights are never loaded",
                "if you trust their source, convert them: "
                "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
            )
        raise BadModel(
            "model.uri", "no weights", "model.safetensors", "save the model with save_pretrained"
        )


def check_architecture(config: dict[str, Any], task: str) -> None:
    """Check that transformers supports the architecture for the task.

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
            found += " (the model brings its own code, which is never run)"
        raise BadModel(
            "model.uri",
            found,
            "an architecture of transformers",
            "choose a model that loads without trust_remote_code",
        )
    if task == "text-classification":
        if CONFIG_MAPPING[kind] not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise BadModel(
                "model.uri",
                f"architecture '{kind}', which has no classification head in transformers",
                "an architecture with AutoModelForSequenceClassification",
                "choose an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT",
            )
    elif CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING or _is_encoder(config):
        raise BadModel(
            "model.uri",
            f"architecture '{kind}', which does not generate text from left to right",
            "an architecture with AutoModelForCausalLM",
            "choose a decoder such as Llama, Qwen, Mistral, Gemma or SmolLM, or set task: "
            "text-classification",
        )


def _is_encoder(config: dict[str, Any]) -> bool:
    """Whether the model is or has an encoder. transformers also has causal versions of these, but
    only as parts of other models."""
    from transformers import (
        CONFIG_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    kind = CONFIG_MAPPING[config["model_type"]]
    has_encoder = (
        kind in MODEL_FOR_MASKED_LM_MAPPING or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    )
    return has_encoder and not config.get("is_decoder")


def max_length(config: Any) -> int | None:
    """Return the longest input in tokens; None if position embeddings set no limit."""
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
        BadModel: The tokenizer lacks the tokens of chatml.
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
    required = ("<|im_start|>", "<|im_end|>")
    missing = [
        token for token in required if len(tokenizer.encode(token, add_special_tokens=False)) != 1
    ]
    if missing:
        raise BadModel(
            "model.chat_template",
            f"chatml for a tokenizer without {' and '.join(missing)}",
            "a tokenizer with <|im_start|> and <|im_end|> as tokens",
            "choose a model whose tokenizer has them (most chat versions do), or set "
            "model.chat_template to a Jinja template that uses this tokenizer's own tokens",
        )


def _special_token_conflicts(
    folder: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Return warnings about special tokens that model and tokenizer define differently.

    A conflict often means that the files do not belong together.
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
                tokens = ", ".join(_describe_token(tokenizer, item) for item in ids)
                found.append(
                    f"the tokenizer's {kind}_token is {_describe_token(tokenizer, own)}, but "
                    f"{name} has {tokens}: the tokenizer's is used"
                )
    return found


def _describe_token(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    known = isinstance(token, int) and 0 <= token < len(tokenizer)
    return f"{token} ({tokenizer.convert_ids_to_tokens(token)})" if known else str(token)


# The model


def _drop_token_types(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer produce no token types, for a model that does not take them: DistilBERT with
    BERT's tokenizer would fail in training and in serving."""
    names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    if names != list(tokenizer.model_input_names):
        # Saved are only the names among the arguments that the tokenizer was made with.
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def _describe_model(
    folder: Path, labels: list[str] | None, vocabulary: int, warnings: list[str]
) -> tuple[dict[str, Any], bool]:
    """Describe the model's modules and sizes without loading its weights.

    Args:
        folder: The base model.
        labels: Labels of a classifier; None for a language model.
        vocabulary: Number of the tokenizer's token ids.
        warnings: Receives what the adapter leaves out.

    Returns:
        Fields of `InspectResult`, and whether the model takes token types.
    """
    from tasks.models.adapter import linear_modules, unadaptable_warnings
    from tasks.models.causal import head_name, load_causal
    from tasks.models.classifier import load_classifier

    if labels is None:
        model, heads = load_causal(folder, device="meta", attention="eager"), []
        linear = linear_modules(model, [head_name(model)])
    else:
        model, heads = load_classifier(folder, labels, seed=0, device="meta")
        linear = linear_modules(model, heads)
    warnings += unadaptable_warnings(model)
    rows = model.get_input_embeddings().weight.shape[0]
    if vocabulary > rows:
        raise BadModel(
            "model.uri",
            f"a tokenizer with {vocabulary:,} ids for a model with {rows:,} embedding rows",
            "no more ids than embedding rows",
            "use the tokenizer that the model was trained with, or resize the embeddings",
        )
    facts = {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "linear_modules": linear,
        "head_modules": heads,
        "shape": _model_shape(folder, model, linear),
    }
    return facts, "token_type_ids" in inspect.signature(model.forward).parameters


def _model_shape(folder: Path, model: PreTrainedModel, linear: list[str]) -> dict[str, int]:
    from tasks.models.weights import stored_dtype

    config = model.config.get_text_config()
    # Models without attention (Mamba) have no heads.
    hidden, heads = config.hidden_size, getattr(config, "num_attention_heads", 0) or 0
    sizes = [model.get_submodule(name).weight.numel() for name in linear]
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    output_parameters = output.weight.numel() if output is not None and not tied else 0
    return {
        "hidden": hidden,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or (hidden // heads if heads else 0),
        # Older families use other names; their default is four times the hidden size.
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
        "embedding_parameters": embedding.numel() + output_parameters,
        "stored_bytes": stored_dtype(folder).itemsize,
    }


if __name__ == "__main__":
    run(main, InspectJob)
