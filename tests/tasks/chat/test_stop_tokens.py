"""Where an answer ends, and that padding never ends one."""

import pytest
from transformers import AutoTokenizer

from tasks.chat.stop_tokens import end_tokens, training_tokenizer
from tasks.contracts.errors import BadModel
from tests.tasks.chat.conversations import CLOSES, NO_END


class TestThePadToken:
    """Where it is the end token, whoever masks the padding masks the end."""

    def test_is_never_the_end_token(self, tiny_lm, tmp_path):
        assert AutoTokenizer.from_pretrained(tiny_lm).pad_token == "<|im_end|>"
        tokenizer = training_tokenizer(tiny_lm)
        assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
        tokenizer.save_pretrained(tmp_path)
        assert training_tokenizer(tmp_path).pad_token == "<|endoftext|>"
        assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "<|endoftext|>"

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"pad_token": None}, "<|endoftext|>"),
            ({"pad_token": "<|im_start|>"}, "<|im_start|>"),
            ({"unk_token": None}, None),
            ({"unk_token": "<|im_end|>"}, None),
            ({"extra": ["<|vision_pad|>", "<pad>"]}, "<pad>"),
            ({"chat_template": CLOSES}, None),  # there the unknown token is used otherwise
        ],
    )
    def test_is_one_that_is_not_used_otherwise(self, tiny_lm, tmp_path, changes, expected):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        tokenizer.add_tokens(changes.pop("extra", []), special_tokens=True)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(tmp_path)
        assert training_tokenizer(tmp_path).pad_token == expected

    def test_does_not_end_a_turn_either(self, tiny_lm, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        tokenizer.eos_token, tokenizer.pad_token = "<repo_name>", "<|im_end|>"
        tokenizer.save_pretrained(tmp_path)
        assert training_tokenizer(tmp_path).pad_token == "<|endoftext|>"


class TestTheEnd:
    def test_is_that_of_tokenizer_template_and_model(self, smol, tiny_lm):
        assert end_tokens(smol) == [2]
        assert end_tokens(smol, {"eos_token_id": [2, 0]}) == [2, 0]
        other = AutoTokenizer.from_pretrained(tiny_lm)
        other.eos_token = "<|endoftext|>"
        assert end_tokens(other) == [0, 2]

    def test_may_have_no_part_in_the_template(self, smol):
        smol.chat_template = NO_END
        assert end_tokens(smol) == [2]

    def test_is_missed_where_there_is_none(self, tiny_lm, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        tokenizer.eos_token = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(BadModel, match="without an end token"):
            training_tokenizer(tmp_path)
