"""Read the tokenizer of a model folder: only a fast one, and never by running its own code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.contracts.errors import BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a fast tokenizer without changing it.

    Raises:
        BadModel: The folder has none, it cannot be read, or it is slow.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        # transformers would silently create an empty tokenizer of the model's type.
        raise BadModel(
            "model.uri",
            "a model without a tokenizer",
            "tokenizer.json beside config.json",
            "save the tokenizer into the same folder with save_pretrained",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # A damaged tokenizer.json makes transformers raise almost anything, even a KeyError.
        lines = str(error).strip().splitlines() or [""]
        raise BadModel(
            "model.uri",
            f"a tokenizer that cannot be read ({type(error).__name__}: {lines[0][:300]})",
            "tokenizer files that transformers can load",
            "save the tokenizer again with AutoTokenizer.save_pretrained",
        ) from error
    if not tokenizer.is_fast:
        raise BadModel(
            "model.uri",
            f"a slow tokenizer ({type(tokenizer).__name__})",
            "a fast tokenizer (tokenizer.json)",
            "use another base model: transformers has no fast tokenizer of this type",
        )
    return tokenizer
