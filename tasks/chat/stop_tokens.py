"""Which tokens end an answer, and a pad token that is none of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.chat.template import special_tokens_of, template_of, template_texts
from tasks.chat.tokenizer import read_tokenizer
from tasks.contracts.errors import BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a fast tokenizer for a language model, whose pad token never ends an answer.

    Where both are one token, whoever masks the padding by its id masks the end too, and the model
    never learns to stop. So a pad token that ends answers is replaced by a token that is meant for
    padding, else by the unknown token if nothing else uses it, else by none: batches carry masks,
    and nothing here is ever masked by its id.

    Raises:
        BadModel: The tokenizer cannot be read, is slow, or has no end token.
    """
    tokenizer = read_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise no_end_token()
    settle_padding(tokenizer)
    return tokenizer


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, model_generation_config: Any = None
) -> list[int]:
    """Ids that end an answer.

    Args:
        tokenizer: The tokenizer that ships.
        model_generation_config: The model's, as an object or as plain values.

    Returns:
        The tokenizer's end token, the token that the chat template ends a turn with, and those of
        the generation configuration, each once, in this order.
    """
    found = [tokenizer.eos_token_id]
    if tokenizer.chat_template and (turn := template_of(tokenizer).end_of_turn):
        found.append(tokenizer.convert_tokens_to_ids(turn))
    settings = model_generation_config
    more = (
        settings.get("eos_token_id")
        if isinstance(settings, dict)
        else getattr(settings, "eos_token_id", None)
    )
    found += more if isinstance(more, list | tuple) else [more]
    return list(dict.fromkeys(token for token in found if isinstance(token, int)))


def settle_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer a pad token that ends no answer, or none (see `training_tokenizer`)."""
    ends = set(tokenizer.convert_ids_to_tokens(end_tokens(tokenizer)))
    if tokenizer.pad_token is not None and tokenizer.pad_token not in ends:
        return
    meant = sorted(
        (token for token in special_tokens_of(tokenizer) if "pad" in token.lower()),
        key=lambda token: (len(token), token),
    )
    unknown = tokenizer.unk_token
    if unknown and not any(unknown in template for template in template_texts(tokenizer)):
        meant.append(unknown)
    tokenizer.pad_token = next((token for token in meant if token not in ends), None)


def no_end_token() -> BadModel:
    """The error for a tokenizer that has none."""
    return BadModel(
        "model.uri",
        "a tokenizer without an end token",
        "an eos_token, so that the model learns where an answer ends",
        "set eos_token in its tokenizer_config.json to the token that ends a text or a turn",
    )
