"""Reading what ships, for the programs that score: what both kinds of model have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.contracts.errors import BadModel


def put_adapter(base: Any, folder: Path) -> torch.nn.Module:
    """Put the adapter in a folder on its base, as a consumer does."""
    # peft takes seconds to import, and what ships merged needs none of it.
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder)


def token_limit(max_length: int | None, tokenizer: Any, config: Any) -> int:
    """Tokens that a model reads at most.

    Args:
        max_length: What the job says; None for what the tokenizer says, which is 10^30 where that
            says nothing.
        tokenizer: The model's.
        config: The model's.
    """
    return int(min(max_length or tokenizer.model_max_length, positions_of(config)))


def positions_of(config: Any) -> int:
    """Positions that a model knows; a billion where it has no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 10**9


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def wrong_answer(what: str, expected: str) -> BadModel:
    """The error for a model that fails the smoke test: its files load, but not its answers."""
    return BadModel(
        "the model",
        what,
        expected,
        "train it again; if that does not help, the base model is broken",
    )
