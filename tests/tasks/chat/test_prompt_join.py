"""Answers that the chat template does not render after their prompt."""

import pytest

from tasks.chat.encoder import encode_example, encode_prompt
from tasks.contracts.errors import BadData, BadModel
from tests.tasks.chat.conversations import (
    ASK,
    BESIDE,
    CALL,
    DROPS_SYSTEM,
    EACH,
    LAST,
    MAY_THINK,
    MORE,
    MOVES_SYSTEM,
    MUST_THINK,
    OPENS_REASONING,
    PROMPT,
    REASONED,
    REMOVES_REASONING,
    SAY,
    SIX,
    SYSTEM,
    TALK,
    TURN,
    masked_runs,
    target_texts,
)

REASONED_TWICE = [*REASONED[:3], SIX]
CLOSES_OWN = OPENS_REASONING.replace(
    "<think>\n{%",
    "<think>\n{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{%",
)
PREFILLED = EACH + TURN + PROMPT.replace("{% endif", "Sure:\n{% endif")
NEWLINE = "\n"


@pytest.fixture
def pieces(smol):
    """Encodes a conversation; returns each sequence as context and target text."""

    def encode(template, messages, tools=None):
        smol.chat_template = template
        example = {"messages": messages} | ({"tools": tools} if tools else {})
        parts = encode_example(smol, example, "instruction")
        found = [masked_runs(smol, part)[:2] for part in parts]
        assert all([flag for flag, _ in pair] == [0, 1] for pair in found)
        return [(given, answer) for (_, given), (_, answer) in found]

    return encode


@pytest.fixture
def serving(smol):
    """Renders the prompt for the last answer, with transformers."""

    def prompt(messages):
        return smol.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)

    return prompt


class TestSystemMessageInTheLastUserTurn:
    def test_precedes_each_answer_as_at_serving_time(self, pieces, serving):
        assert pieces(MOVES_SYSTEM, TALK) == [
            ("[INST] Be brief.\n\nWhat is 2 + 2?[/INST]", f" {SAY['content']}<|im_end|>"),
            (serving(TALK), " 6<|im_end|>"),
        ]
        assert "[INST] Be brief.\n\nAnd 3 + 3 ?[/INST]" in serving(TALK)

    def test_a_conversation_without_one_stays_one_sequence(self, chat):
        assert chat(MOVES_SYSTEM, TALK[1:]) == [[f" {SAY['content']}<|im_end|>", " 6<|im_end|>"]]

    def test_precedes_a_tool_call_as_the_template_renders_it(self, pieces):
        [(given, answer)] = pieces(MOVES_SYSTEM, [SYSTEM, ASK, CALL])
        assert given.endswith("What is 2 + 2?[/INST]")
        assert answer.startswith(' CALLS {"name": "add", ')
        assert answer.endswith("}<|im_end|>")

    def test_precedes_both_answers_of_a_preference(self, smol):
        smol.chat_template = MOVES_SYSTEM
        example = {"prompt": TALK[:-1], "chosen": [LAST], "rejected": [SAY]}
        sides = encode_example(smol, example, "preference")
        prompt = encode_prompt(smol, example, "preference")
        assert [side.ids[: len(prompt)] for side in sides] == [prompt, prompt]
        assert "Be brief." in smol.decode(prompt)
        assert [target_texts(smol, side) for side in sides] == [
            [" 6<|im_end|>"],
            [f" {SAY['content']}<|im_end|>"],
        ]

    def test_is_refused_if_the_template_drops_it(self, chat):
        with pytest.raises(BadModel, match="leaves out the system message's content"):
            chat(
                DROPS_SYSTEM.replace("{{ c }}", "{{ c.split('</think>')[-1] }}"),
                [SYSTEM, *REASONED],
            )


class TestPromptThatOpensTheReasoning:
    def test_the_opening_tag_is_not_repeated(self, pieces, serving):
        first, second = pieces(OPENS_REASONING, REASONED_TWICE)
        assert first[1] == "two twos</think>\n\nFour.<|im_end|>"
        assert second == (serving(REASONED_TWICE), "three twos\n</think>\n\nSix.<|im_end|>")
        assert second[0].endswith("<|im_start|>assistant\n<think>\n")
        assert "two twos" not in second[0]

    def test_the_data_may_lack_the_opening_tag(self, pieces):
        bare = {"role": "assistant", "content": "three twos\n</think>\n\nSix."}
        assert pieces(OPENS_REASONING, [ASK, bare]) == pieces(OPENS_REASONING, [ASK, SIX])

    def test_reasoning_content_is_joined(self, pieces):
        assert pieces(OPENS_REASONING, [ASK, BESIDE]) == pieces(OPENS_REASONING, [ASK, SIX])

    def test_the_reasoning_is_closed_if_the_answer_has_none(self, pieces, serving):
        """Otherwise the answer would be trained as reasoning."""
        assert pieces(OPENS_REASONING, TALK)[1] == (serving(TALK), "</think>\n\n6<|im_end|>")

    def test_tags_inside_an_answer_are_not_reasoning(self, pieces):
        about = {"role": "assistant", "content": "It goes into <think> and </think>."}
        [(_, answer)] = pieces(OPENS_REASONING.replace("[-1]", "[0]"), [ASK, about | SAY])
        assert answer == f"</think>\n\n{SAY['content']}<|im_end|>"

    def test_the_reasoning_is_closed_as_the_template_does_with_thinking_off(self, pieces, smol):
        [(given, answer)] = pieces(CLOSES_OWN, [ASK, LAST])
        off = smol.apply_chat_template(
            [ASK], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert given + answer == off + "6<|im_end|>"
        assert answer == "</think>6<|im_end|>"

    @pytest.mark.parametrize(
        ("opening", "closing"), [("<thought>", "</thought>"), ("[THINK]", "[/THINK]")]
    )
    def test_other_tags_are_recognised(self, pieces, opening, closing):
        template = OPENS_REASONING.replace("<think>\n", opening).replace("</think>", closing)
        said = {"role": "assistant", "content": f"{opening}twos{closing}Six."}
        assert pieces(template, [ASK, said])[0][1] == f"twos{closing}Six.<|im_end|>"
        assert pieces(template, [ASK, LAST])[0][1] == f"\n{closing}\n\n6<|im_end|>"

    def test_reasoning_without_an_answer_is_refused(self, chat):
        for content in ("<think>two twos", "<think>two twos</think>\n"):
            with pytest.raises(BadData, match="an assistant turn with reasoning but no answer"):
                chat(OPENS_REASONING, [ASK, {"role": "assistant", "content": content}])

    def test_a_tool_call_is_refused(self, chat):
        template = OPENS_REASONING.replace("{{ c }}", "{{ c }}{{ m.tool_calls }}")
        with pytest.raises(BadModel, match="is not the beginning of the answer"):
            chat(template, [ASK, CALL | {"content": ""}])

    def test_a_preference_leaves_earlier_reasoning_out(self, smol):
        smol.chat_template = OPENS_REASONING
        example = {"prompt": REASONED_TWICE[:3], "chosen": [SIX], "rejected": [LAST]}
        chosen, rejected = encode_example(smol, example, "preference")
        assert target_texts(smol, chosen) == ["three twos\n</think>\n\nSix.<|im_end|>"]
        assert target_texts(smol, rejected) == ["</think>\n\n6<|im_end|>"]
        assert "two twos" not in smol.decode(chosen.ids)


class TestTemplateThatRemovesReasoning:
    def test_the_reasoning_is_a_target(self, pieces, serving):
        first, second = pieces(REMOVES_REASONING, REASONED_TWICE)
        assert first[1] == "<think>two twos</think>\n\nFour.<|im_end|>"
        assert second == (serving(REASONED_TWICE), f"{SIX['content']}<|im_end|>")

    def test_reasoning_content_is_a_target_between_the_tags(self, pieces):
        assert pieces(REMOVES_REASONING, [ASK, BESIDE]) == pieces(REMOVES_REASONING, [ASK, SIX])

    def test_no_reasoning_is_added(self, chat):
        assert len(chat(REMOVES_REASONING, TALK)) == 1

    def test_is_refused_if_it_removes_the_answer(self, chat):
        with pytest.raises(BadModel, match="leaves out the assistant message's content"):
            chat(REMOVES_REASONING.replace("[-1]", "[0]"), REASONED_TWICE)


class TestTemplateThatRendersReasoningInTheLastTurn:
    """These need no joining: the target is what the template renders."""

    @pytest.mark.parametrize(("template", "begun"), [(MAY_THINK, ""), (MUST_THINK, "<think>\n")])
    @pytest.mark.parametrize("last", [SIX, BESIDE])
    def test_the_reasoning_is_a_target(self, pieces, template, begun, last):
        first, second = pieces(template, [*REASONED[:3], last])
        assert begun + first[1] == "<think>\ntwo twos\n</think>\n\nFour.<|im_end|>"
        assert begun + second[1] == "<think>\nthree twos\n</think>\n\nSix.<|im_end|>"
        assert "two twos" not in second[0]

    @pytest.mark.parametrize(("template", "begun"), [(MAY_THINK, ""), (MUST_THINK, "<think>\n")])
    def test_its_empty_reasoning_is_a_target(self, pieces, template, begun):
        [(_, answer)] = pieces(template, [ASK, LAST])
        assert begun + answer == f"<think>\n{'' if begun else NEWLINE}</think>\n\n6<|im_end|>"

    def test_no_token_crosses_the_end_of_the_prompt(self, smol):
        """Two line breaks are one token: training would not see the prompt as it is served."""
        smol.chat_template = MUST_THINK
        [encoded] = encode_example(smol, {"messages": [ASK, LAST]}, "instruction")
        prompt = encode_prompt(smol, {"messages": [ASK, LAST]}, "instruction")
        assert smol.tokenize("\n\n") == ["ĊĊ"]
        assert encoded.loss_mask.index(1) == len(prompt)
        assert encoded.ids[: len(prompt)] == prompt


class TestPromptThatPrefillsTheAnswer:
    def test_an_answer_that_begins_this_way_is_continued(self, pieces, serving):
        messages = [ASK, {"role": "assistant", "content": "Sure:  four."}]
        assert pieces(PREFILLED, messages) == [(serving(messages), "four.<|im_end|>")]

    def test_another_answer_is_refused(self, chat):
        with pytest.raises(BadModel, match="is not the beginning of the answer"):
            chat(PREFILLED, [ASK, LAST, MORE, SAY])


class TestServingPrompt:
    @pytest.mark.parametrize("template", [MOVES_SYSTEM, OPENS_REASONING, CLOSES_OWN, MAY_THINK])
    @pytest.mark.parametrize(
        "messages", [TALK, TALK[1:], REASONED_TWICE, [SYSTEM, *REASONED_TWICE]]
    )
    def test_is_the_beginning_of_the_last_sequence(self, smol, template, messages):
        smol.chat_template = template
        *_, last = encode_example(smol, {"messages": messages}, "instruction")
        text = smol.decode(encode_prompt(smol, {"messages": messages}, "instruction"))
        assert smol.decode(last.ids).startswith(text)
        assert (
            last.ids[: last.loss_mask.index(1)]
            == smol(text)["input_ids"][: last.loss_mask.index(1)]
        )
