"""The tokens that end an answer; padding is never one of them."""

import pytest
from transformers import AutoTokenizer

from tasks.chat.stop_tokens import stop_token_ids, training_tokenizer
from tasks.contracts.errors import BadModel
from tests.tasks.chat.conversations import CLOSES, NO_END


class TestPadToken:
    """If it were the end token, masking the padding would mask the end too."""

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
            ({"chat_template": CLOSES}, None),  # this template uses the unknown token
        ],
    )
    def test_is_a_token_without_another_use(self, tiny_lm, tmp_path, changes, expected):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        tokenizer.add_tokens(changes.pop("extra", []), special_tokens=True)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(tmp_path)
        assert training_tokenizer(tmp_path).pad_token == expected

    def test_never_ends_a_turn(self, tiny_lm, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        tokenizer.eos_token, tokenizer.pad_token = "<repo_name>", "<|im_end|>"
        tokenizer.save_pretrained(tmp_path)
        assert training_tokenizer(tmp_path).pad_token == "<|endoftext|>"


class TestStopTokens:
    def test_are_those_of_tokenizer_template_and_model(self, smol, tiny_lm):
        assert stop_token_ids(smol) == [2]
        assert stop_token_ids(smol, {"eos_token_id": [2, 0]}) == [2, 0]
        other = AutoTokenizer.from_pretrained(tiny_lm)
        other.eos_token = "<|endoftext|>"
        assert stop_token_ids(other) == [0, 2]

    def test_may_be_absent_from_the_template(self, smol):
        smol.chat_template = NO_END
        assert stop_token_ids(smol) == [2]

    def test_a_tokenizer_without_an_end_token_is_refused(self, tiny_lm, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        tokenizer.eos_token = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(BadModel, match="without an end token"):
            training_tokenizer(tmp_path)
