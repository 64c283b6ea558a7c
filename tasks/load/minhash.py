"""MinHash band keys of many texts at once: near-duplicates tend to share one.

MinHash (Broder 1997, "On the resemblance and containment of documents") over shingles of three
words, 64 permutations in 8 bands of 8: two texts whose shingle sets have the Jaccard similarity s
share a band with probability 1 - (1 - s^8)^8, which is one half at s = 0.71 and 0.99 at 0.89.

The permutations are those of `datasketch.MinHash` (its scheme `affine32`), which a test holds this
module against. It works on a whole shard in NumPy, where datasketch works on one text at a time;
and importing datasketch alone would take longer than reading a small shard.
"""

from __future__ import annotations

import zlib

import numpy as np

PERMUTATIONS = 64
BANDS = 8
SHINGLE = 3
SEED = 1

LONGEST_WORDS = 8192
"""Words of a text that count: what follows cannot make near-duplicates of such long texts."""

_SHINGLES_AT_ONCE = 16_384  # 4 MB of hashes

_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)


def band_keys(texts: list[str]) -> np.ndarray:
    """Keys of each text's bands.

    Args:
        texts: In normal form: words are separated by single spaces.

    Returns:
        uint64, shape (texts, 8). Texts that share a key in the same column are probably near.
    """
    signed = signatures(*shingles(texts)).reshape(-1, BANDS, PERMUTATIONS // BANDS)
    keys = np.zeros(signed.shape[:2], np.uint64)
    for column in range(signed.shape[2]):
        keys = (keys ^ signed[:, :, column]) * _MIX[0]
        keys ^= keys >> np.uint64(29)
    return keys


def shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of each text's shingles: runs of three words, or the whole of a shorter text.

    Returns:
        The hashes (uint32) of all texts, one after another, and where each text's begin.
    """
    known = _Words()
    words: list[int] = []
    ends = []
    for text in texts:
        words.extend(map(known.__getitem__, text.split(" ")[:LONGEST_WORDS]))
        short = SHINGLE - (len(words) - (ends[-1] if ends else 0))
        words.extend([0] * short)
        ends.append(len(words))
    flat = np.array(words, np.uint64)
    mixed = flat[:-2] * _MIX[0] + flat[1:-1] * _MIX[1] + flat[2:] * _MIX[2]
    stops = np.array(ends, np.int64)
    whole = np.ones(len(mixed), bool)
    # A run must not reach into the next text.
    whole[stops[:-1] - 1] = whole[stops[:-1] - 2] = False
    counts = np.diff(stops, prepend=0) - (SHINGLE - 1)
    return (mixed[whole] >> np.uint64(32)).astype(np.uint32), np.cumsum(counts) - counts


class _Words(dict):
    """A checksum for each word, computed once a piece."""

    def __missing__(self, word: str) -> int:
        # 0 fills up texts of fewer than three words.
        self[word] = checksum = zlib.crc32(word.encode()) + 1
        return checksum


def signatures(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """MinHash signatures.

    Args:
        hashes: uint32, of the shingles of all texts, one after another.
        starts: Where each text's begin.

    Returns:
        uint32, shape (texts, 64).
    """
    factors, terms = permutations()
    hashes = _finalize(hashes)
    found = np.empty((len(starts), PERMUTATIONS), np.uint32)
    stops = np.append(starts[1:], len(hashes))
    first = 0
    while first < len(starts):
        last = int(np.searchsorted(stops, starts[first] + _SHINGLES_AT_ONCE, "right"))
        last = max(last, first + 1)
        part = hashes[starts[first] : stops[last - 1]]
        permuted = part * factors[:, None] + terms[:, None]
        found[first:last] = np.minimum.reduceat(
            permuted, starts[first:last] - starts[first], axis=1
        ).T
        first = last
    return found


def permutations() -> tuple[np.ndarray, np.ndarray]:
    """Factors (odd) and terms of the maps h -> a h + b modulo 2**32, as datasketch draws them."""
    generator = np.random.RandomState(SEED)
    factors = generator.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2)
    terms = generator.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
    return factors + np.uint32(1), terms


def _finalize(hashes: np.ndarray) -> np.ndarray:
    """MurmurHash3's finalizer: every input bit reaches every output bit."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))
