"""The inputs that a language model is scored on."""

import pyarrow as pa
import pytest

from tasks.evaluate.language_inputs import distinct_inputs, kept_tokens, with_prompt


class TestDistinctInputs:
    def test_rows_with_equal_hashes_are_one_input(self):
        examples = pa.table(
            {
                "hash_hi": pa.array([5, 1, 5], pa.uint64()),
                "hash_lo": pa.array([0, 0, 0], pa.uint64()),
                "example": ['{"n": 0}', '{"n": 1}', '{"n": 2}'],
            }
        )
        found = distinct_inputs(examples)
        assert [(one.row, [each["n"] for each in one.examples]) for one in found] == [
            (0, [0, 2]),
            (1, [1]),
        ]


class TestWithPrompt:
    @pytest.mark.parametrize(
        ("text", "prompt", "completion"),
        [("one two three", "one two", " three"), ("unspaced", "unsp", "aced"), ("", "", "")],
    )
    def test_texts_are_split_at_the_space_nearest_their_middle(self, text, prompt, completion):
        assert with_prompt({"text": text}) == {"prompt": prompt, "completion": completion}

    def test_examples_with_a_prompt_stay_as_they_are(self):
        example = {"prompt": "a b", "completion": "c d"}
        assert with_prompt(example) is example


class TestKeptTokens:
    def test_short_sequences_are_kept(self):
        assert kept_tokens([0, 1, 1], 5) == slice(0, 5)

    def test_long_sequences_are_truncated_at_their_end(self):
        assert kept_tokens([0, 1, 1, 1], 3) == slice(0, 3)

    def test_beginning_is_cut_off_if_the_whole_answer_would_be(self):
        mask = [0] * 10 + [1] * 4
        kept = kept_tokens(mask, 6)
        assert kept == slice(7, 13)
        assert sum(mask[kept]) == 3
