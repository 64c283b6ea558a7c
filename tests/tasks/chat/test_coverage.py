"""What a chat template leaves out is refused."""

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


class TestATemplateThatLeavesSomethingOut:
    def test_of_the_system_is_refused(self, chat):
        with pytest.raises(BadModel, match=r"does not show what the system says \('Be brief.'\)"):
            chat(DROPS_SYSTEM, TALK)
        assert chat(DROPS_SYSTEM, TALK[1:]) == chat(None, TALK[1:])

    def test_that_refuses_the_system_says_so(self, chat):
        with pytest.raises(BadModel, match=r"refuses the conversation.*No system role here"):
            chat(NO_SYSTEM, TALK)
        assert len(chat(NO_SYSTEM, TALK[1:])) == 1

    @pytest.mark.parametrize("content", [{}, {"content": ""}, {"content": None}])
    def test_of_a_tool_call_is_refused(self, chat, content):
        with pytest.raises(BadModel, match=r"does not show a tool call \('add'\)"):
            chat(None, [ASK, CALL | content])

    def test_of_the_tools_is_refused(self, chat):
        with pytest.raises(BadModel, match="the tools that the assistant may call"):
            chat(None, TALK, TOOLS)

    def test_of_a_thought_beside_the_answer_is_refused(self, chat):
        with pytest.raises(BadModel, match=r"what the assistant thinks \('three twos'\)"):
            chat(None, [ASK, BESIDE])

    def test_is_not_meant_where_it_only_trims(self, chat):
        spaced = [{"role": "user", "content": "  two  \n"}, LAST]
        assert chat(EACH.replace("m.content", "m.content | trim") + TURN + PROMPT, spaced)
