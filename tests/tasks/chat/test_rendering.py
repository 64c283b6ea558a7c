"""Assistant turns are the targets of a conversation, whatever the chat template."""

import json

import pytest

from tasks.chat.encoder import encode_example, encode_examples, reference_answer
from tasks.chat.template import CHATML
from tasks.contracts.errors import BadData, BadModel
from tests.tasks.chat.conversations import (
    ALL_MARKED,
    ASK,
    CALL,
    CALLS,
    CLOSES,
    EACH,
    LAST,
    MARKED,
    NO_END,
    NONE_MARKED,
    PROMPT,
    REASONED,
    SAY,
    STRIPS_THINKING,
    SYSTEM,
    TALK,
    TOOLS,
    TURN,
    masked_runs,
    target_texts,
)


class TestConversation:
    def test_assistant_turns_and_their_ends_are_targets(self, smol):
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert masked_runs(smol, encoded) == [
            (
                0,
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?"
                "<|im_end|>\n<|im_start|>assistant\n",
            ),
            (1, "It is 4, naturally. 👍🏽<|im_end|>"),
            (0, "\n<|im_start|>user\nAnd 3 + 3 ?<|im_end|>\n<|im_start|>assistant\n"),
            (1, "6<|im_end|>"),
            (0, "\n"),
        ]

    def test_has_the_ids_of_apply_chat_template(self, smol):
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert encoded.ids == smol.apply_chat_template(TALK)["input_ids"]

    def test_encodes_the_same_alone_and_in_a_batch(self, smol):
        examples = [{"messages": TALK[:3]}, {"messages": TALK}, {"messages": [ASK, LAST]}]
        together = encode_examples(smol, examples, "instruction")
        assert together == [encode_example(smol, each, "instruction") for each in examples]

    def test_an_end_token_after_the_conversation_is_not_a_target(self, chat):
        assert chat(CLOSES, TALK) == [["It is 4, naturally. 👍🏽<|im_end|>", "6<|im_end|>"]]

    def test_gets_an_end_token_if_the_template_writes_none(self, chat, smol):
        assert chat(NO_END, TALK) == [["It is 4, naturally. 👍🏽", "6<|im_end|>"]]
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert encoded.ids[-1] == smol.eos_token_id

    def test_begins_with_a_single_bos_token(self, llama):
        """Not one from the template and one from the tokenizer."""
        [encoded] = encode_example(llama, {"messages": TALK}, "instruction")
        assert encoded.ids.count(llama.bos_token_id) == 1
        assert target_texts(llama, encoded) == ["It is 4, naturally. 👍🏽<|eot_id|>", "6<|eot_id|>"]
        whole = llama.apply_chat_template(TALK)["input_ids"]
        assert llama.decode(encoded.ids) == llama.decode(whole)

    def test_messages_after_the_last_answer_are_not_targets(self, chat):
        assert chat(None, [*TALK[:4]]) == [["It is 4, naturally. 👍🏽<|im_end|>"]]

    def test_a_template_that_writes_the_date_gives_the_same_ids_every_day(self, chat, smol):
        chat("Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML, TALK)
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert smol.decode(encoded.ids).startswith("Today is 26 Jul 2024.")

    def test_with_only_a_greeting_by_the_assistant_is_refused(self, chat):
        with pytest.raises(BadData, match="a conversation that begins with the assistant"):
            chat(None, [SAY])

    def test_without_an_assistant_turn_is_refused(self, chat):
        with pytest.raises(BadData, match=r"without an assistant turn \(roles: system, user\)"):
            chat(None, [SYSTEM, ASK])


class TestTemplateThatRendersEarlierTurnsDifferently:
    def test_gives_one_sequence_per_turn(self, chat, smol):
        assert chat(STRIPS_THINKING, REASONED) == [
            ["<think>two twos</think>\n\nFour.<|im_end|>"],
            ["6<|im_end|>"],
        ]
        second = encode_example(smol, {"messages": REASONED}, "instruction")[1]
        assert "think" not in smol.decode(second.ids)

    def test_gives_one_sequence_if_the_turns_are_unaffected(self, chat):
        assert len(chat(STRIPS_THINKING, TALK)) == 1

    def test_its_generation_marks_are_used(self, chat):
        assert chat(MARKED, REASONED) == [["Four.<|im_end|>", "6<|im_end|>"]]

    def test_marks_that_mark_nothing_are_ignored(self, chat):
        """Otherwise no token would be a target."""
        assert len(chat(NONE_MARKED, REASONED)) == 2

    def test_marks_around_everything_are_refused(self, chat):
        with pytest.raises(BadModel, match="that marks every token as the assistant"):
            chat(ALL_MARKED, REASONED)

    def test_is_refused_if_the_prompt_is_not_the_beginning_of_the_answer(self, chat):
        template = EACH + TURN + PROMPT.replace("{% endif", "Sure: {% endif")
        with pytest.raises(BadModel, match="is not the beginning of the answer"):
            chat(template, TALK)


class TestToolCall:
    expected = '<tool_call>add({"a": 2, "why": "say \\"so\\""})</tool_call><|im_end|>'

    def test_is_a_target(self, chat):
        assert chat(CALLS, [ASK, CALL], TOOLS) == [[self.expected]]

    def test_arguments_may_be_json_text(self, chat):
        [call] = CALL["tool_calls"]
        function = call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}
        as_text = CALL | {"tool_calls": [call | {"function": function}]}
        assert chat(CALLS, [ASK, as_text], TOOLS) == [[self.expected]]

    def test_the_tools_answer_is_context(self, chat):
        answer = {"role": "tool", "name": "add", "content": '{"sum": 4}'}
        assert chat(CALLS, [ASK, CALL, answer, SAY], TOOLS) == [
            [self.expected, "It is 4, naturally. 👍🏽<|im_end|>"]
        ]

    def test_the_reference_is_json(self):
        [call] = json.loads(reference_answer({"messages": [ASK, CALL]}, "instruction"))
        assert call["name"] == "add"
