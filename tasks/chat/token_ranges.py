"""From the characters of a text to its tokens."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, NamedTuple

from tasks.chat.template import Span


class Tokens(NamedTuple):
    """The tokens of a text, with those that the tokenizer adds around it.

    Attributes:
        ids: Token ids.
        offsets: Range of characters of each token.
        first, last: The range of tokens that encode the text.
    """

    ids: list[int]
    offsets: list[Span]
    first: int
    last: int


def text_token_range(found: Any) -> Span:
    """The range of tokens that encode the text, without special tokens added around it."""
    added = found.special_tokens_mask
    first, last = 0, len(added)
    while first < last and added[first]:
        first += 1
    while last > first and added[last - 1]:
        last -= 1
    return first, last


def loss_mask_of(offsets: list[Span], spans: tuple[Span, ...], first: int, last: int) -> list[int]:
    """1 for each token with a character inside a span, 0 for the others.

    Byte-level tokenizers leave spaces out of a token's character range: a token for spaces alone
    has an empty range right after them.
    """
    mask = [0] * len(offsets)
    for start, end in spans:
        low = bisect_right(offsets, start, first, last, key=lambda offset: offset[1])
        high = low
        while high < last and (offsets[high][0] < end or offsets[high] == (end, end)):
            high += 1
        mask[low:high] = [1] * (high - low)
    return mask
