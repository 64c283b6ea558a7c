"""Messages of a conversation: which are answers, and in which forms a template may get them."""

from __future__ import annotations

import pytest

from tasks.chat.messages import (
    QUOTE_LENGTH,
    assistant_turns,
    conversation_of,
    message_variants,
    parse_arguments,
    quote,
    text_content,
)
from tasks.contracts.errors import BadData

ASK = {"role": "user", "content": "Weather?"}
ANSWER = {"role": "assistant", "content": "Rain."}
ARGUMENTS = {"city": "Zürich", "days": 2}


def call(arguments):
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


def arguments_of(messages):
    return messages[-1]["tool_calls"][0]["function"]["arguments"]


class TestConversation:
    def test_of_a_preference_is_the_one_with_the_chosen_answer(self):
        pair = {"prompt": [ASK], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Sun."}]}
        assert conversation_of(pair, "preference") == [ASK, ANSWER]
        assert conversation_of({"messages": [ASK, ANSWER]}, "instruction") == [ASK, ANSWER]

    def test_answers_are_the_assistants_messages(self):
        assert assistant_turns([ASK, ANSWER, ASK, ANSWER]) == [1, 3]

    def test_without_an_answer_is_refused_with_its_roles(self):
        with pytest.raises(BadData, match=r"without an assistant turn \(roles: user, tool\)"):
            assistant_turns([ASK, {"role": "tool", "content": "3"}])

    def test_without_content_is_empty_text(self):
        assert text_content({"content": None}) == ""
        assert text_content({}) == ""


class TestMessageVariants:
    def test_without_tool_calls_there_is_one(self):
        assert list(message_variants([ASK, {**ANSWER, "name": None}])) == [[ASK, ANSWER]]

    def test_an_absent_content_may_be_empty(self):
        bare = {"role": "assistant"}
        variants = list(message_variants([ASK, bare]))
        assert variants[0][1] == bare
        assert variants[1][1] == {"role": "assistant", "content": ""}

    @pytest.mark.parametrize("given", [ARGUMENTS, '{"city": "Zürich", "days": 2}'])
    def test_arguments_are_objects_and_then_json_text(self, given):
        *objects, text = message_variants([ASK, call(given)])
        assert [arguments_of(messages) for messages in objects] == [ARGUMENTS, ARGUMENTS]
        assert arguments_of(text) == '{"city": "Zürich", "days": 2}'
        # Only one of the two forms with objects has an empty content.
        assert ["content" in messages[-1] for messages in objects] == [False, True]

    def test_arguments_that_are_no_json_stay_as_they_are(self):
        assert parse_arguments("city=Bern") == "city=Bern"


class TestQuote:
    def test_is_one_short_line(self):
        assert quote("a\n  b") == "'a b'"
        assert quote("x" * (QUOTE_LENGTH + 1)) == f"'{'x' * QUOTE_LENGTH}…'"
