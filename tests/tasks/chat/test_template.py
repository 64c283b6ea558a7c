"""A tokenizer's chat template."""

import pytest

from tasks.chat.encoder import encode_example
from tasks.contracts.errors import BadModel
from tests.tasks.chat.conversations import TALK


class TestATokenizerWithoutATemplate:
    def test_is_refused_for_conversations_and_taken_for_texts(self, smol):
        smol.chat_template = None
        with pytest.raises(BadModel, match="without a chat template") as caught:
            encode_example(smol, {"messages": TALK}, "instruction")
        assert caught.value.where == "model.chat_template"
        assert encode_example(smol, {"text": "Once upon"}, "completion")

    def test_is_refused_if_it_is_no_jinja(self, smol):
        smol.chat_template = "{% for %}"
        with pytest.raises(BadModel, match="that is no Jinja"):
            encode_example(smol, {"messages": TALK}, "instruction")
