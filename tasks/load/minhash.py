"""MinHash band keys: near-duplicate texts probably share one.

MinHash (Broder 1997, "On the resemblance and containment of documents") over shingles of three
words, 64 permutations in 8 bands of 8: two texts whose shingle sets have the Jaccard similarity s
share a band with probability 1 - (1 - s^8)^8, which is one half at s = 0.71 and 0.99 at 0.89.

The permutations are those of `datasketch.MinHash` (scheme `affine32`); a test compares the two.
This module processes a whole shard in NumPy, while datasketch processes one text at a time, and
importing datasketch takes longer than reading a small shard.
"""

from __future__ import annotations

import zlib

import numpy as np

PERMUTATIONS = 64
BANDS = 8
SHINGLE = 3
SEED = 1

MAX_WORDS = 8192
"""Words of a text that are compared; the rest of a longer text hardly changes its similarity."""

_SHINGLES_AT_ONCE = 16_384  # 4 MB of hashes

_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)


def band_keys(texts: list[str]) -> np.ndarray:
    """Return the band keys of each text.

    Args:
        texts: Texts in normal form, with words separated by single spaces.

    Returns:
        uint64, shape (texts, 8). Texts with an equal key in one column are probably similar.
    """
    signed = signatures(*shingles(texts)).reshape(-1, BANDS, PERMUTATIONS // BANDS)
    keys = np.zeros(signed.shape[:2], np.uint64)
    for column in range(signed.shape[2]):
        keys = (keys ^ signed[:, :, column]) * _MIX[0]
        keys ^= keys >> np.uint64(29)
    return keys


def shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash each text's shingles: runs of three words, or the whole of a shorter text.

    Returns:
        The hashes of all texts in one array (uint32), and the offset of each text's first hash.
    """
    known = _WordChecksums()
    words: list[int] = []
    ends = []
    for text in texts:
        words.extend(map(known.__getitem__, text.split(" ")[:MAX_WORDS]))
        short = SHINGLE - (len(words) - (ends[-1] if ends else 0))
        words.extend([0] * short)
        ends.append(len(words))
    flat = np.array(words, np.uint64)
    mixed = flat[:-2] * _MIX[0] + flat[1:-1] * _MIX[1] + flat[2:] * _MIX[2]
    stops = np.array(ends, np.int64)
    whole = np.ones(len(mixed), bool)
    # A shingle must not extend into the next text.
    whole[stops[:-1] - 1] = whole[stops[:-1] - 2] = False
    counts = np.diff(stops, prepend=0) - (SHINGLE - 1)
    return (mixed[whole] >> np.uint64(32)).astype(np.uint32), np.cumsum(counts) - counts


class _WordChecksums(dict):
    """The checksum of each word, computed once per shard."""

    def __missing__(self, word: str) -> int:
        # 0 pads texts of fewer than three words.
        self[word] = checksum = zlib.crc32(word.encode()) + 1
        return checksum


def signatures(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Compute MinHash signatures.

    Args:
        hashes: The shingle hashes of all texts in one array, uint32.
        starts: The offset of each text's first hash.

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
    """Return factors a (odd) and terms b of the maps h -> a h + b (mod 2**32), like datasketch."""
    generator = np.random.RandomState(SEED)
    factors = generator.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2)
    terms = generator.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
    return factors + np.uint32(1), terms


def _finalize(hashes: np.ndarray) -> np.ndarray:
    """MurmurHash3's finalizer: every input bit reaches every output bit."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))
