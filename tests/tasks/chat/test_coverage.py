"""Chat templates that leave something out are refused."""

import pytest

from tasks.contracts.errors import BadModel
from tests.tasks.chat.conversations import (
    ASK,
    BESIDE,
    CALL,
    DROPS_SYSTEM,
    EACH,
    LAST,
    NO_SYSTEM,
    PROMPT,
    TALK,
    TOOLS,
    TURN,
)


class TestTemplateThatLeavesSomethingOut:
    def test_without_the_system_message_is_refused(self, chat):
        with pytest.raises(
            BadModel, match=r"leaves out the system message's content \('Be brief.'\)"
        ):
            chat(DROPS_SYSTEM, TALK)
        assert chat(DROPS_SYSTEM, TALK[1:]) == chat(None, TALK[1:])

    def test_its_own_error_is_quoted(self, chat):
        with pytest.raises(BadModel, match=r"refuses the conversation.*No system role here"):
            chat(NO_SYSTEM, TALK)
        assert len(chat(NO_SYSTEM, TALK[1:])) == 1

    @pytest.mark.parametrize("content", [{}, {"content": ""}, {"content": None}])
    def test_without_a_tool_call_is_refused(self, chat, content):
        with pytest.raises(BadModel, match=r"leaves out a tool call \('add'\)"):
            chat(None, [ASK, CALL | content])

    def test_without_the_tools_is_refused(self, chat):
        with pytest.raises(BadModel, match="the tools that the assistant may call"):
            chat(None, TALK, TOOLS)

    def test_without_the_reasoning_content_is_refused(self, chat):
        with pytest.raises(BadModel, match=r"the assistant message's reasoning \('three twos'\)"):
            chat(None, [ASK, BESIDE])

    def test_is_accepted_if_it_only_trims_whitespace(self, chat):
        spaced = [{"role": "user", "content": "  two  \n"}, LAST]
        assert chat(EACH.replace("m.content", "m.content | trim") + TURN + PROMPT, spaced)
