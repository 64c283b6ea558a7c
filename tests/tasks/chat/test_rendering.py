"""Which parts of a conversation are learnt, whatever the chat template."""

import json

import pytest

from tasks.chat.encoder import encode_example, encode_examples, reference
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
    SAY,
    STRIPS_THINKING,
    SYSTEM,
    TALK,
    THOUGHT,
    TOOLS,
    TURN,
    learnt,
    segments,
)


class TestAConversation:
    def test_is_learnt_in_what_the_assistant_says_and_its_ends(self, smol):
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert segments(smol, encoded) == [
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

    def test_is_encoded_alike_alone_and_among_others(self, smol):
        examples = [{"messages": TALK[:3]}, {"messages": TALK}, {"messages": [ASK, LAST]}]
        together = encode_examples(smol, examples, "instruction")
        assert together == [encode_example(smol, each, "instruction") for each in examples]

    def test_with_a_template_that_puts_an_end_behind_all(self, chat):
        assert chat(CLOSES, TALK) == [["It is 4, naturally. 👍🏽<|im_end|>", "6<|im_end|>"]]

    def test_with_a_template_without_ends_gets_the_end_token(self, chat, smol):
        assert chat(NO_END, TALK) == [["It is 4, naturally. 👍🏽", "6<|im_end|>"]]
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert encoded.ids[-1] == smol.eos_token_id

    def test_has_one_token_at_its_beginning(self, llama):
        """Never two, of the template and of the tokenizer."""
        [encoded] = encode_example(llama, {"messages": TALK}, "instruction")
        assert encoded.ids.count(llama.bos_token_id) == 1
        assert learnt(llama, encoded) == ["It is 4, naturally. 👍🏽<|eot_id|>", "6<|eot_id|>"]
        assert encoded.ids == llama.apply_chat_template(TALK)["input_ids"]

    def test_that_goes_on_after_the_last_answer_is_learnt_up_to_it(self, chat):
        assert chat(None, [*TALK[:4]]) == [["It is 4, naturally. 👍🏽<|im_end|>"]]

    def test_with_the_date_of_today_in_it_has_the_same_ids_tomorrow(self, chat, smol):
        chat("Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML, TALK)
        [encoded] = encode_example(smol, {"messages": TALK}, "instruction")
        assert smol.decode(encoded.ids).startswith("Today is 26 Jul 2024.")

    def test_that_the_assistant_begins_is_refused_if_that_is_all(self, chat):
        with pytest.raises(BadData, match="a conversation that the assistant begins"):
            chat(None, [SAY])

    def test_without_the_assistant_is_refused(self, chat):
        with pytest.raises(BadData, match=r"without the assistant \(roles: system, user\)"):
            chat(None, [SYSTEM, ASK])


class TestATemplateThatShowsEarlierTurnsOtherwise:
    def test_makes_an_example_of_each_turn(self, chat, smol):
        assert chat(STRIPS_THINKING, THOUGHT) == [
            ["<think>two twos</think>\n\nFour.<|im_end|>"],
            ["6<|im_end|>"],
        ]
        second = encode_example(smol, {"messages": THOUGHT}, "instruction")[1]
        assert "think" not in smol.decode(second.ids)

    def test_makes_one_where_it_does_not_matter(self, chat):
        assert len(chat(STRIPS_THINKING, TALK)) == 1

    def test_is_taken_at_its_marks(self, chat):
        assert chat(MARKED, THOUGHT) == [["Four.<|im_end|>", "6<|im_end|>"]]

    def test_is_not_taken_at_marks_that_mark_nothing(self, chat):
        """Else nothing at all would be learnt, and nobody would know."""
        assert len(chat(NONE_MARKED, THOUGHT)) == 2

    def test_is_refused_where_its_marks_mark_all(self, chat):
        with pytest.raises(BadModel, match="by which every token is the assistant's"):
            chat(ALL_MARKED, THOUGHT)

    def test_is_refused_where_the_prompt_does_not_begin_the_answer(self, chat):
        template = EACH + TURN + PROMPT.replace("{% endif", "Sure: {% endif")
        with pytest.raises(BadModel, match="does not begin the answer"):
            chat(template, TALK)


class TestAToolCall:
    expected = '<tool_call>add({"a": 2, "why": "say \\"so\\""})</tool_call><|im_end|>'

    def test_is_learnt(self, chat):
        assert chat(CALLS, [ASK, CALL], TOOLS) == [[self.expected]]

    def test_may_have_its_arguments_as_text(self, chat):
        [call] = CALL["tool_calls"]
        function = call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}
        as_text = CALL | {"tool_calls": [call | {"function": function}]}
        assert chat(CALLS, [ASK, as_text], TOOLS) == [[self.expected]]

    def test_is_shown_with_its_answer_but_the_answer_not_learnt(self, chat):
        answer = {"role": "tool", "name": "add", "content": '{"sum": 4}'}
        assert chat(CALLS, [ASK, CALL, answer, SAY], TOOLS) == [
            [self.expected, "It is 4, naturally. 👍🏽<|im_end|>"]
        ]

    def test_is_a_reference_as_json(self):
        [call] = json.loads(reference({"messages": [ASK, CALL]}, "instruction"))
        assert call["name"] == "add"
