"""Causal language models for the programs: reading a base, its adapter, merging, what ships."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.distributed import DistributedConfig

from tasks.contracts.errors import BadModel, BadRecipe
from tasks.kernels import packed_attention
from tasks.models import adapter, weights
from tasks.models.load_errors import reading_base

# What a configuration calls what is done to logits after the head.
_AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier")


def load_causal(
    folder: Path,
    *,
    dtype: torch.dtype | str = "auto",
    quantization: str = "none",
    device: str = "cpu",
    attention: str = "sdpa",
    shares: int = 1,
) -> PreTrainedModel:
    """Read a causal language model.

    Args:
        folder: The model.
        dtype: Of the weights that are not quantised; `auto` for that of the files.
        quantization: `none` or `nf4` (with double quantisation). The output embedding never is.
        device: `cpu` or `cuda`.
        attention: The attention implementation of transformers, or `packed`.
        shares: How many processes hold the model together, each a share of every layer (FSDP2).
            What is added to it later, each has in full.

    Returns:
        The model, in evaluation mode.

    Raises:
        BadModel: The weights cannot be read, or are not this architecture's.
    """
    packed_attention.register()
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if shares > 1:
        options["distributed_config"] = DistributedConfig(fsdp_size=shares)
    elif device != "cpu" or quantization == "nf4":
        options["device_map"] = {"": weights.place(device)}
    with reading_base("AutoModelForCausalLM"):
        if quantization == "nf4":
            options["quantization_config"] = weights.nf4(dtype, [_head_name(folder)])
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    lost = {*report["missing_keys"], *report["mismatched_keys"]}
    if lost:
        raise BadModel(
            "model.uri",
            f"{len(lost)} tensors missing, such as {sorted(map(str, lost))[0]}",
            f"all weights of a {type(model).__name__}",
            "check that config.json and the weights belong together, and that the model is a "
            "language model with its head",
        )
    weights.guard_4bit(model)
    if quantization == "nf4" and device == "cpu":
        _let_go_of_files(model)
    return model.eval()


def head_name(model: PreTrainedModel) -> str:
    """Name of the module that makes logits of hidden states."""
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


def attach_lora(model: PreTrainedModel, lora: dict[str, Any], seed: int) -> torch.nn.Module:
    """Wrap a language model in a new adapter, which trains in fp32; all else is frozen.

    Args:
        model: From `load_causal`.
        lora: `LoraRecipe` as plain values.
        seed: Of the adapter's first values.

    Raises:
        BadRecipe: A target or module to save does not exist, or the head is a target.
    """
    head = head_name(model)
    if any(f".{head}".endswith(f".{target}") for target in lora["target_modules"]):
        raise BadRecipe(
            "lora.target_modules",
            f"{head}, the output embedding",
            "linear layers within the model",
            "leave it out; to train it in full, name it in lora.modules_to_save",
        )
    return adapter.attach_lora(model, lora, (), seed, task_type="CAUSAL_LM", apart=(head,))


@contextlib.contextmanager
def headless(model: PreTrainedModel) -> Iterator[None]:
    """Within it, what a language model returns as its logits is what enters its head."""
    head = model.get_output_embeddings()
    head.forward = _itself
    try:
        yield
    finally:
        del head.forward


def head_is_linear(model: PreTrainedModel, device: str) -> bool:
    """Whether logits are the head's weights times what enters it, with nothing after, and the
    head is frozen: then they need not be made for tokens that nobody learns.

    Args:
        model: The base model, without an adapter's wrapper.
        device: Where it is.
    """
    head = model.get_output_embeddings()
    if not _is_plain(head):
        return False
    (text,) = _texts(model, device, 7)
    with torch.no_grad():
        logits = model(input_ids=text, use_cache=False).logits
        with headless(model):
            hidden = model(input_ids=text, use_cache=False).logits
        if hidden.shape[-1] != head.weight.shape[-1]:
            return False
        own = torch.nn.functional.linear(hidden, head.weight, getattr(head, "bias", None))
    return close(own, logits)


def head_looks_linear(model: PreTrainedModel) -> bool:
    """What `head_is_linear` finds out, as far as a model without weights can tell.

    Args:
        model: The base model, without an adapter's wrapper.
    """
    config = model.config.get_text_config()
    changed = any(getattr(config, name, None) not in (None, 1.0) for name in _AFTER_THE_HEAD)
    return _is_plain(model.get_output_embeddings()) and not changed


def keeps_logits(model: PreTrainedModel) -> bool:
    """Whether the model can be asked for some positions' logits only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def packs(model: PreTrainedModel, device: str) -> bool:
    """Whether examples one behind the other get the very hidden states that they get alone.

    Asked of the model itself, as it will train: there are models that ignore positions, or whose
    layers carry a state from token to token.

    Args:
        model: The base model, without an adapter's wrapper.
        device: Where it is.
    """
    texts = _texts(model, device, 5, 9, 3)
    packed = {
        "input_ids": torch.cat(texts, 1),
        **packed_attention.packed_arguments([5, 9, 3], device),
    }
    try:
        with torch.no_grad(), headless(model):
            alone = [model(input_ids=text, use_cache=False).logits for text in texts]
            together = model(**packed, use_cache=False).logits
    except (packed_attention.UnsupportedAttention, TypeError):
        return False
    return close(together, torch.cat(alone, 1))


def runs(model: PreTrainedModel, device: str) -> bool:
    """Whether the model's attention is scaled dot products and nothing more."""
    (text,) = _texts(model, device, 7)
    try:
        with torch.no_grad(), headless(model):
            model(input_ids=text, use_cache=False)
    except packed_attention.UnsupportedAttention:
        return False
    return True


def sample_states(model: PreTrainedModel, device: str) -> torch.Tensor:
    """What enters the head for a few tokens, always the same.

    Args:
        model: The base model, without an adapter's wrapper.
        device: Where it is.
    """
    (text,) = _texts(model, device, 7)
    with torch.no_grad(), headless(model):
        return model(input_ids=text, use_cache=False).logits


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two ways to compute the same differ by rounding alone."""
    # bf16 has 8 bits: a few roundings, but no other tokens.
    tolerance = 1e-4 if one.dtype == torch.float32 else 0.05
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= tolerance * (1 + other.abs().max()))


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList | None:
    """The list of a model's layers: the longest list of like modules in it."""
    lists = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len({type(each) for each in module}) == 1
    ]
    return max(lists, key=len, default=None)


def settle_generation(model: PreTrainedModel, ends: list[int], pad: int | None) -> None:
    """Set how the model is to generate: as its base says, and ending where answers end.

    Args:
        model: The base or the merged model.
        ends: Tokens that end an answer.
        pad: The token to pad with.
    """
    config = model.generation_config
    if ends:
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
    if config.pad_token_id is None:
        config.pad_token_id = pad
    try:
        config.validate(strict=True)
    except ValueError:
        # A temperature without sampling, most often: such files exist, but cannot be written.
        config.do_sample = True


def _let_go_of_files(model: PreTrainedModel) -> None:
    """Copy what was not quantised: it lies in the mapped files, and as long as anything does, all
    that was read of them to be quantised stays in memory with it."""
    for parameter in model.parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.clone()


def _head_name(folder: Path) -> str:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        return head_name(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


def _texts(model: PreTrainedModel, device: str, *lengths: int) -> list[torch.Tensor]:
    """Tokens drawn from all that the model knows, always the same."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (1, n), generator=draw).to(device) for n in lengths]


def _is_plain(head: Any) -> bool:
    return type(head) is torch.nn.Linear and not any(
        parameter.requires_grad for parameter in head.parameters()
    )


def _itself(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
