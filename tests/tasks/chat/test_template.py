"""Chat templates: missing and broken ones are refused."""

import pytest

from tasks.chat.encoder import encode_example
from tasks.contracts.errors import BadModel
from tests.tasks.chat.conversations import TALK


class TestTokenizer:
    def test_without_a_template_is_refused_for_conversations_but_not_for_texts(self, smol):
        smol.chat_template = None
        with pytest.raises(BadModel, match="without a chat template") as caught:
            encode_example(smol, {"messages": TALK}, "instruction")
        assert caught.value.where == "model.chat_template"
        assert encode_example(smol, {"text": "Once upon"}, "completion")

    def test_with_invalid_jinja_is_refused(self, smol):
        smol.chat_template = "{% for %}"
        with pytest.raises(BadModel, match="that is not valid Jinja"):
            encode_example(smol, {"messages": TALK}, "instruction")
