"""MinHash band keys, compared with datasketch."""

from __future__ import annotations

import datasketch
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.load.minhash import (
    BANDS,
    PERMUTATIONS,
    SEED,
    SHINGLE,
    band_keys,
    permutations,
    shingles,
    signatures,
)
from tasks.load.splits import normal_form
from tests.tasks.samples import some_rows


class TestMinHash:
    texts = [normal_form(row["text"]) for row in some_rows(200)] + ["one", "one two", "a b c"]

    def test_signatures_equal_those_of_datasketch(self):
        hashes, starts = shingles(self.texts)
        ours = signatures(hashes, starts)
        stops = [*starts[1:].tolist(), len(hashes)]
        for number, (start, stop) in enumerate(zip(starts.tolist(), stops, strict=True)):
            theirs = datasketch.MinHash(PERMUTATIONS, seed=SEED, hashfunc=int, scheme="affine32")
            theirs.update_batch(hashes[start:stop].tolist())
            assert (theirs.hashvalues == ours[number]).all()

    def test_permutations_equal_those_of_datasketch(self):
        theirs = datasketch.MinHash(PERMUTATIONS, seed=SEED, scheme="affine32").permutations
        assert (np.stack(permutations()) == theirs).all()

    def test_signatures_estimate_the_jaccard_similarity(self):
        words = self.texts[0].split() * 3 + [f"w{number}" for number in range(150)]
        other = words[:-30] + [f"v{number}" for number in range(30)]
        sets = [
            {tuple(each[n : n + SHINGLE]) for n in range(len(each) - SHINGLE + 1)}
            for each in (words, other)
        ]
        true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        signed = signatures(*shingles([" ".join(words), " ".join(other)]))
        assert abs((signed[0] == signed[1]).mean() - true) < 0.2

    def test_equal_texts_share_all_bands_and_different_texts_none(self):
        keys = band_keys([self.texts[0], self.texts[1], self.texts[0]])
        assert keys.shape == (3, BANDS)
        assert (keys[0] == keys[2]).all()
        assert not (keys[0] == keys[1]).any()

    @given(st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=9), min_size=1))
    def test_keys_do_not_depend_on_the_other_texts(self, many):
        texts = [" ".join(words) for words in many]
        together = band_keys(texts)
        for text, keys in zip(texts, together, strict=True):
            assert (band_keys([text])[0] == keys).all()
