"""Stable splits: an example's split depends on its own content only.

Inputs are compared in a normal form that is only hashed: the model sees the original text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from tasks.contracts.recipe_data import SplitRecipe

TRAIN, VALIDATION, TEST = 1, 2, 3
SPLIT_NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
SPLIT_ALIASES = {
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
# Changing this key would reassign every example.
_SPLIT_KEY = b"burnish split 1"


def normal_form(text: str) -> str:
    """Return a text in the form that is hashed: NFKC, case-folded, whitespace collapsed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def input_hash(text: str, pair: str = "") -> bytes:
    """Return the 16-byte hash of a row's inputs, given in normal form."""
    data = text.encode()
    return hashlib.blake2b(b"%d:" % len(data) + data + pair.encode(), digest_size=16).digest()


def split_of(identity: bytes, split: SplitRecipe) -> int:
    """Return an example's split, by a keyed hash of its identity (its inputs, or its group).

    It does not depend on other examples, nor on their number, order or file.
    """
    drawn = hashlib.blake2b(identity, digest_size=8, key=_SPLIT_KEY).digest()
    share = int.from_bytes(drawn, "little") / 2**64
    if share < split.test:
        return TEST
    return VALIDATION if share < split.test + split.validation else TRAIN


def split_by_name(path: str) -> int:
    """Return the split that a file's name, or else a folder above it, contains; 0 if none does."""
    for part in reversed(path.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in SPLIT_ALIASES:
                return SPLIT_ALIASES[word]
    return 0
