"""Which split an example belongs to, by what it is.

Inputs are compared in a normal form that is only ever hashed: the model sees the text as it is.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from tasks.contracts.recipe_data import SplitRecipe

TRAIN, VALIDATION, TEST = 1, 2, 3
SPLIT_NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
SPLIT_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
    "eval": TEST,
    "evaluation": TEST,
}
# A change of this key would move every example to another split.
_SPLIT_KEY = b"burnish split 1"


def normal_form(text: str) -> str:
    """A text as it is compared: NFKC, case folded, whitespace collapsed. Only ever hashed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def input_hash(text: str, pair: str = "") -> bytes:
    """16 bytes that stand for a row's inputs, in their normal form."""
    data = text.encode()
    return hashlib.blake2b(b"%d:" % len(data) + data + pair.encode(), digest_size=16).digest()


def split_of(identity: bytes, split: SplitRecipe) -> int:
    """The split of an example by a keyed hash of what it is.

    It depends on nothing else: not on other examples, their number, order or file.
    """
    drawn = hashlib.blake2b(identity, digest_size=8, key=_SPLIT_KEY).digest()
    share = int.from_bytes(drawn, "little") / 2**64
    if share < split.test:
        return TEST
    return VALIDATION if share < split.test + split.validation else TRAIN


def split_by_name(path: str) -> int:
    """The split that a file's name or a folder above it says; 0 where none does."""
    for part in reversed(path.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return 0
