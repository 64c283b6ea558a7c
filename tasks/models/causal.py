"""Load causal language models, attach adapters, and probe what an architecture supports."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.distributed import DistributedConfig

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.contracts.recipe_training import LoraRecipe
from tasks.kernels import packed_attention
from tasks.models import adapter, weights
from tasks.models.load_errors import base_load_errors

# Configuration fields for operations on the logits after the head.
_AFTER_HEAD_FIELDS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
)


# What an architecture may raise of arguments or an attention that it does not support.
_UNSUPPORTED = (packed_attention.UnsupportedAttention, AttributeError, TypeError, ValueError)


def load_causal(
    folder: Path,
    *,
    dtype: torch.dtype | str = "auto",
    quantization: str = "none",
    device: str = "cpu",
    attention: str = "sdpa",
    shards: int = 1,
) -> PreTrainedModel:
    """Load a causal language model.

    Args:
        folder: The model.
        dtype: Dtype of unquantized weights; `auto` for that of the files.
        quantization: `none` or `nf4` (with double quantization). The output embedding is never
            quantized.
        device: `cpu` or `cuda`.
        attention: The attention implementation of transformers, or `packed`.
        shards: Number of processes over which every layer is sharded (FSDP2). Parameters added
            later are not sharded.

    Returns:
        The model, in evaluation mode.

    Raises:
        BadModel: The weights cannot be loaded, or belong to another architecture.
    """
    packed_attention.register()
    options: dict[str, Any] = {"dtype": dtype}
    if shards > 1:
        options["distributed_config"] = DistributedConfig(fsdp_size=shards)
    elif device != "cpu" or quantization == "nf4":
        options["device_map"] = {"": weights.local_device(device)}
    with base_load_errors("AutoModelForCausalLM"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if quantization == "nf4":
            options["quantization_config"] = weights.nf4_config(dtype, [_head_name(config)])

        def load(attention: str) -> tuple[PreTrainedModel, dict[str, Any]]:
            return AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation=weights.supported_attention(
                    attention, config, MODEL_FOR_CAUSAL_LM_MAPPING
                ),
                **options,
            )

        model, report = weights.with_attention(load, attention)
    lost = {*report["missing_keys"], *report["mismatched_keys"]}
    if lost:
        raise BadModel(
            "model.uri",
            f"{len(lost)} tensors missing, such as {sorted(map(str, lost))[0]}",
            f"all weights of a {type(model).__name__}",
            "check that config.json and the weights belong together, and that the model has a "
            "language modeling head",
        )
    weights.keep_4bit_trainable(model)
    if quantization == "nf4" and device == "cpu":
        _copy_mapped_weights(model)
    return model.eval()


def head_name(model: PreTrainedModel) -> str:
    """The name of the module that computes logits from hidden states."""
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


def attach_lora(model: PreTrainedModel, lora: LoraRecipe, seed: int) -> torch.nn.Module:
    """Wrap a language model in a new adapter, which trains in fp32; the rest is frozen.

    Args:
        model: A model from `load_causal`.
        lora: The adapter's settings.
        seed: Seed of the adapter's initial values.

    Raises:
        BadRecipe: A target or module to save does not exist, or the head is a target.
    """
    head = head_name(model)
    if any(f".{head}".endswith(f".{target}") for target in lora.target_modules):
        raise BadRecipe(
            "lora.target_modules",
            f"{head}, the output embedding",
            "linear layers of the decoder",
            "leave it out; to train it in full, name it in lora.modules_to_save",
        )
    return adapter.attach_lora(model, lora, (), seed, task_type="CAUSAL_LM", exclude=(head,))


@contextlib.contextmanager
def headless(model: PreTrainedModel) -> Iterator[None]:
    """Make a language model return the inputs of its head as its logits, inside the context."""
    head = model.get_output_embeddings()
    head.forward = _identity
    try:
        yield
    finally:
        del head.forward


def head_is_linear(model: PreTrainedModel, device: str) -> bool:
    """Whether the head is frozen and logits are its weights times its inputs, nothing else.

    Logits then need not be computed for tokens that are not targets. Tested by a forward pass.

    Args:
        model: The base model, without the adapter's wrapper.
        device: The device that it is on.
    """
    head = model.get_output_embeddings()
    if not _is_plain(head):
        return False
    (text,) = _probe_inputs(model, device, 7)
    with torch.no_grad():
        logits = model(input_ids=text, use_cache=False).logits
        with headless(model):
            hidden = model(input_ids=text, use_cache=False).logits
        if hidden.shape[-1] != head.weight.shape[-1]:
            return False
        own = torch.nn.functional.linear(hidden, head.weight, getattr(head, "bias", None))
    return nearly_equal(own, logits)


def head_looks_linear(model: PreTrainedModel) -> bool:
    """`head_is_linear` for a model without weights, judged by its configuration.

    Args:
        model: The base model, without the adapter's wrapper.
    """
    config = model.config.get_text_config()
    changed = any(getattr(config, name, None) not in (None, 1.0) for name in _AFTER_HEAD_FIELDS)
    return _is_plain(model.get_output_embeddings()) and not changed


def accepts_logits_to_keep(model: PreTrainedModel) -> bool:
    """Whether the model can compute the logits of selected positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def packing_obstacle(model: PreTrainedModel, device: str) -> str:
    """Why packed examples would not get the hidden states that each example gets alone; empty if
    they do, rounding aside.

    Tested by forward passes with the settings of training: some models ignore position ids, and
    the layers of others carry a state from token to token.

    Args:
        model: The base model, without the adapter's wrapper.
        device: The device that it is on.
    """
    texts = _probe_inputs(model, device, 5, 9, 3)
    packed = {
        "input_ids": torch.cat(texts, 1),
        **packed_attention.packed_arguments([5, 9, 3], device),
    }
    try:
        with torch.no_grad(), headless(model):
            alone = [model(input_ids=text, use_cache=False).logits for text in texts]
            together = model(**packed, use_cache=False).logits
    except _UNSUPPORTED as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    apart = torch.cat(alone, 1)
    if nearly_equal(together, apart):
        return ""
    return f"hidden states differ by up to {(together.float() - apart.float()).abs().max():.2g}"


def supports_plain_attention(model: PreTrainedModel, device: str) -> bool:
    """Whether the model runs with `packed_attention`, which computes scaled dot products only.

    Args:
        model: The base model, without the adapter's wrapper.
        device: The device that it is on.
    """
    (text,) = _probe_inputs(model, device, 7)
    try:
        with torch.no_grad(), headless(model):
            model(input_ids=text, use_cache=False)
    except _UNSUPPORTED:
        return False
    return True


def probe_hidden_states(model: PreTrainedModel, device: str) -> torch.Tensor:
    """The inputs of the head for a few fixed tokens: (1, tokens, hidden size).

    Args:
        model: The base model, without the adapter's wrapper.
        device: The device that it is on.
    """
    (text,) = _probe_inputs(model, device, 7)
    with torch.no_grad(), headless(model):
        return model(input_ids=text, use_cache=False).logits


def nearly_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results differ by rounding only."""
    # bf16 has 8 significant bits: the tolerance covers a few roundings, but not other inputs.
    tolerance = 1e-4 if one.dtype == torch.float32 else 0.05
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= tolerance * (1 + other.abs().max()))


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList | None:
    """A model's decoder layers: its longest list of modules of one type; None if it has none."""
    lists = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len({type(each) for each in module}) == 1
    ]
    return max(lists, key=len, default=None)


_SAMPLING_SETTINGS = (
    "temperature",
    "top_k",
    "top_p",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)


def set_generation_config(
    model: PreTrainedModel, stop_tokens: list[int], pad_token: int | None
) -> None:
    """Make the base's generation configuration fit to ship.

    It gets the stop tokens and a pad token. A base that generates greedily still does: settings
    that only sampling reads are removed, since transformers refuses to save them without sampling
    (and raises on a temperature of 0 with it).

    Args:
        model: The base or the merged model.
        stop_tokens: Ids of the tokens that end an answer.
        pad_token: Id of the pad token; used if the configuration has none.

    Raises:
        BadModel: transformers refuses the base's configuration for another reason.
    """
    config = model.generation_config
    if stop_tokens:
        config.eos_token_id = stop_tokens if len(stop_tokens) > 1 else stop_tokens[0]
    if config.pad_token_id is None:
        config.pad_token_id = pad_token
    if not config.do_sample:
        for name in _SAMPLING_SETTINGS:
            setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise BadModel(
            "model.uri",
            f"a generation_config.json that transformers refuses ({str(error)[:300]})",
            "a valid generation configuration",
            "correct or remove the base's generation_config.json",
        ) from error


def _copy_mapped_weights(model: PreTrainedModel) -> None:
    """Copy the weights that were not quantized out of the memory-mapped files.

    As long as one tensor refers to a mapped file, all pages that were read to quantize the others
    stay in memory too.
    """
    for parameter in model.parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.clone()


def _head_name(config: PreTrainedConfig) -> str:
    with torch.device("meta"):
        return head_name(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


def _probe_inputs(model: PreTrainedModel, device: str, *lengths: int) -> list[torch.Tensor]:
    """Random tokens of the given lengths, the same on every call: (1, length) each."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (1, n), generator=draw).to(device) for n in lengths]


def _is_plain(head: Any) -> bool:
    return type(head) is torch.nn.Linear and not any(
        parameter.requires_grad for parameter in head.parameters()
    )


def _identity(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
