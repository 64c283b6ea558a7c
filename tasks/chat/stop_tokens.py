"""Find the tokens that end an answer, and a pad token that is none of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.chat.template import special_tokens_of, template_of, template_sources
from tasks.chat.tokenizer import read_tokenizer
from tasks.contracts.errors import BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a fast tokenizer for a language model; its pad token never ends an answer.

    If pad and end token are the same, code that masks padding by its id also masks the end, and
    the model never learns to stop.

    Raises:
        BadModel: The tokenizer cannot be read, is slow, or has no end token.
    """
    tokenizer = read_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise no_end_token()
    set_pad_token(tokenizer)
    return tokenizer


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, model_generation_config: Any = None
) -> list[int]:
    """Ids of the tokens that end an answer.

    Args:
        tokenizer: The tokenizer that ships.
        model_generation_config: That of the model, as an object or as a dict.

    Returns:
        The tokenizer's end token, the token that ends a turn in the chat template, and those of
        the generation configuration, in this order and without duplicates.
    """
    found = [tokenizer.eos_token_id]
    if tokenizer.chat_template and (turn := template_of(tokenizer).end_of_turn_token):
        found.append(tokenizer.convert_tokens_to_ids(turn))
    settings = model_generation_config
    more = (
        settings.get("eos_token_id")
        if isinstance(settings, dict)
        else getattr(settings, "eos_token_id", None)
    )
    found += more if isinstance(more, list | tuple) else [more]
    return list(dict.fromkeys(token for token in found if isinstance(token, int)))


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Replace a pad token that ends answers.

    The new one is a token meant for padding, else the unknown token if no template uses it, else
    None: batches carry attention masks, and nothing here is ever masked by its id.
    """
    stops = set(tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer)))
    if tokenizer.pad_token is not None and tokenizer.pad_token not in stops:
        return
    candidates = sorted(
        (token for token in special_tokens_of(tokenizer) if "pad" in token.lower()),
        key=lambda token: (len(token), token),
    )
    unknown = tokenizer.unk_token
    if unknown and not any(unknown in template for template in template_sources(tokenizer)):
        candidates.append(unknown)
    tokenizer.pad_token = next((token for token in candidates if token not in stops), None)


def no_end_token() -> BadModel:
    """The error for a tokenizer without an end token."""
    return BadModel(
        "model.uri",
        "a tokenizer without an end token",
        "an eos_token, so that the model learns where an answer ends",
        "set eos_token in its tokenizer_config.json to the token that ends a text or a turn",
    )
