"""Answers that the chat template does not show behind the prompt for them."""

import pytest

from tasks.chat.encoder import encode_example, encode_prompt
from tasks.contracts.errors import BadData, BadModel
from tests.tasks.chat.conversations import (
    ASK,
    BEGINS_THOUGHT,
    BESIDE,
    CALL,
    DROPS_SYSTEM,
    EACH,
    HIDES_THOUGHT,
    LAST,
    MAY_THINK,
    MORE,
    MOVES_SYSTEM,
    MUST_THINK,
    PROMPT,
    SAY,
    SIX,
    SYSTEM,
    TALK,
    THOUGHT,
    TURN,
    learnt,
    segments,
)

THOUGHTS = [*THOUGHT[:3], SIX]
CLOSES_OWN = BEGINS_THOUGHT.replace(
    "<think>\n{%",
    "<think>\n{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{%",
)
PREFILLED = EACH + TURN + PROMPT.replace("{% endif", "Sure:\n{% endif")
NEWLINE = "\n"


@pytest.fixture
def pieces(smol):
    """The sequences of a conversation, each as what is given and what is learnt."""

    def encode(template, messages, tools=None):
        smol.chat_template = template
        example = {"messages": messages} | ({"tools": tools} if tools else {})
        parts = encode_example(smol, example, "instruction")
        found = [segments(smol, part)[:2] for part in parts]
        assert all([flag for flag, _ in pair] == [0, 1] for pair in found)
        return [(given, answer) for (_, given), (_, answer) in found]

    return encode


@pytest.fixture
def serving(smol):
    """What a model is given to write the last answer."""

    def prompt(messages):
        return smol.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)

    return prompt


class TestASystemMessageInTheUsersLastTurn:
    def test_is_shown_before_each_answer_as_when_serving(self, pieces, serving):
        assert pieces(MOVES_SYSTEM, TALK) == [
            ("[INST] Be brief.\n\nWhat is 2 + 2?[/INST]", f" {SAY['content']}<|im_end|>"),
            (serving(TALK), " 6<|im_end|>"),
        ]
        assert "[INST] Be brief.\n\nAnd 3 + 3 ?[/INST]" in serving(TALK)

    def test_leaves_a_talk_without_one_in_one_piece(self, chat):
        assert chat(MOVES_SYSTEM, TALK[1:]) == [[f" {SAY['content']}<|im_end|>", " 6<|im_end|>"]]

    def test_is_shown_before_a_tool_call_as_the_template_writes_it(self, pieces):
        [(given, answer)] = pieces(MOVES_SYSTEM, [SYSTEM, ASK, CALL])
        assert given.endswith("What is 2 + 2?[/INST]")
        assert answer.startswith(' CALLS {"name": "add", ')
        assert answer.endswith("}<|im_end|>")

    def test_is_shown_to_both_sides_of_a_preference(self, smol):
        smol.chat_template = MOVES_SYSTEM
        example = {"prompt": TALK[:-1], "chosen": [LAST], "rejected": [SAY]}
        sides = encode_example(smol, example, "preference")
        prompt = encode_prompt(smol, example, "preference")
        assert [side.ids[: len(prompt)] for side in sides] == [prompt, prompt]
        assert "Be brief." in smol.decode(prompt)
        assert [learnt(smol, side) for side in sides] == [
            [" 6<|im_end|>"],
            [f" {SAY['content']}<|im_end|>"],
        ]

    def test_is_refused_where_it_is_dropped_for_good(self, chat):
        with pytest.raises(BadModel, match="does not show what the system says"):
            chat(
                DROPS_SYSTEM.replace("{{ c }}", "{{ c.split('</think>')[-1] }}"), [SYSTEM, *THOUGHT]
            )


class TestAPromptThatBeginsTheThought:
    def test_goes_on_with_the_thought_and_not_with_its_tag(self, pieces, serving):
        first, second = pieces(BEGINS_THOUGHT, THOUGHTS)
        assert first[1] == "two twos</think>\n\nFour.<|im_end|>"
        assert second == (serving(THOUGHTS), "three twos\n</think>\n\nSix.<|im_end|>")
        assert second[0].endswith("<|im_start|>assistant\n<think>\n")
        assert "two twos" not in second[0]

    def test_may_lack_the_tag_in_the_data(self, pieces):
        bare = {"role": "assistant", "content": "three twos\n</think>\n\nSix."}
        assert pieces(BEGINS_THOUGHT, [ASK, bare]) == pieces(BEGINS_THOUGHT, [ASK, SIX])

    def test_goes_on_with_a_thought_that_lies_beside_the_answer(self, pieces):
        assert pieces(BEGINS_THOUGHT, [ASK, BESIDE]) == pieces(BEGINS_THOUGHT, [ASK, SIX])

    def test_has_an_empty_thought_where_there_is_none(self, pieces, serving):
        """Else the answer would be learnt as a thought."""
        assert pieces(BEGINS_THOUGHT, TALK)[1] == (serving(TALK), "</think>\n\n6<|im_end|>")

    def test_has_an_empty_thought_for_words_about_thoughts(self, pieces):
        about = {"role": "assistant", "content": "It goes into <think> and </think>."}
        [(_, answer)] = pieces(BEGINS_THOUGHT.replace("[-1]", "[0]"), [ASK, about | SAY])
        assert answer == f"</think>\n\n{SAY['content']}<|im_end|>"

    def test_is_closed_as_the_template_does_it_with_thinking_off(self, pieces, smol):
        [(given, answer)] = pieces(CLOSES_OWN, [ASK, LAST])
        off = smol.apply_chat_template(
            [ASK], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert given + answer == off + "6<|im_end|>"
        assert answer == "</think>6<|im_end|>"

    @pytest.mark.parametrize(
        ("opening", "closing"), [("<thought>", "</thought>"), ("[THINK]", "[/THINK]")]
    )
    def test_may_have_other_tags(self, pieces, opening, closing):
        template = BEGINS_THOUGHT.replace("<think>\n", opening).replace("</think>", closing)
        said = {"role": "assistant", "content": f"{opening}twos{closing}Six."}
        assert pieces(template, [ASK, said])[0][1] == f"twos{closing}Six.<|im_end|>"
        assert pieces(template, [ASK, LAST])[0][1] == f"\n{closing}\n\n6<|im_end|>"

    def test_is_refused_for_a_thought_without_an_answer(self, chat):
        for content in ("<think>two twos", "<think>two twos</think>\n"):
            with pytest.raises(BadData, match="an answer that is a thought alone"):
                chat(BEGINS_THOUGHT, [ASK, {"role": "assistant", "content": content}])

    def test_is_refused_for_a_tool_call(self, chat):
        template = BEGINS_THOUGHT.replace("{{ c }}", "{{ c }}{{ m.tool_calls }}")
        with pytest.raises(BadModel, match="does not begin the answer"):
            chat(template, [ASK, CALL | {"content": ""}])

    def test_of_a_preference_shows_earlier_thoughts_to_nobody(self, smol):
        smol.chat_template = BEGINS_THOUGHT
        example = {"prompt": THOUGHTS[:3], "chosen": [SIX], "rejected": [LAST]}
        chosen, rejected = encode_example(smol, example, "preference")
        assert learnt(smol, chosen) == ["three twos\n</think>\n\nSix.<|im_end|>"]
        assert learnt(smol, rejected) == ["</think>\n\n6<|im_end|>"]
        assert "two twos" not in smol.decode(chosen.ids)


class TestATemplateThatHidesTheThought:
    def test_has_it_learnt_all_the_same(self, pieces, serving):
        first, second = pieces(HIDES_THOUGHT, THOUGHTS)
        assert first[1] == "<think>two twos</think>\n\nFour.<|im_end|>"
        assert second == (serving(THOUGHTS), f"{SIX['content']}<|im_end|>")

    def test_has_one_beside_the_answer_learnt_between_its_tags(self, pieces):
        assert pieces(HIDES_THOUGHT, [ASK, BESIDE]) == pieces(HIDES_THOUGHT, [ASK, SIX])

    def test_adds_no_thought_where_there_is_none(self, chat):
        assert len(chat(HIDES_THOUGHT, TALK)) == 1

    def test_is_refused_where_it_hides_what_is_said(self, chat):
        with pytest.raises(BadModel, match="does not show what the assistant says"):
            chat(HIDES_THOUGHT.replace("[-1]", "[0]"), THOUGHTS)


class TestATemplateThatShowsThoughtsWhenTheyAreNew:
    """These need no joining: what is learnt is what the template writes."""

    @pytest.mark.parametrize(("template", "begun"), [(MAY_THINK, ""), (MUST_THINK, "<think>\n")])
    @pytest.mark.parametrize("last", [SIX, BESIDE])
    def test_has_them_learnt(self, pieces, template, begun, last):
        first, second = pieces(template, [*THOUGHT[:3], last])
        assert begun + first[1] == "<think>\ntwo twos\n</think>\n\nFour.<|im_end|>"
        assert begun + second[1] == "<think>\nthree twos\n</think>\n\nSix.<|im_end|>"
        assert "two twos" not in second[0]

    @pytest.mark.parametrize(("template", "begun"), [(MAY_THINK, ""), (MUST_THINK, "<think>\n")])
    def test_has_its_empty_thought_learnt(self, pieces, template, begun):
        [(_, answer)] = pieces(template, [ASK, LAST])
        assert begun + answer == f"<think>\n{'' if begun else NEWLINE}</think>\n\n6<|im_end|>"

    def test_has_no_token_across_the_border_to_the_prompt(self, smol):
        """Two line breaks are one token: the prompt would never be seen as it is."""
        smol.chat_template = MUST_THINK
        [encoded] = encode_example(smol, {"messages": [ASK, LAST]}, "instruction")
        prompt = encode_prompt(smol, {"messages": [ASK, LAST]}, "instruction")
        assert smol.tokenize("\n\n") == ["ĊĊ"]
        assert encoded.loss_mask.index(1) == len(prompt)
        assert encoded.ids[: len(prompt)] == prompt


class TestAPromptThatBeginsTheAnswerOtherwise:
    def test_goes_on_with_an_answer_that_begins_so(self, pieces, serving):
        messages = [ASK, {"role": "assistant", "content": "Sure:  four."}]
        assert pieces(PREFILLED, messages) == [(serving(messages), "four.<|im_end|>")]

    def test_is_refused_for_another_answer(self, chat):
        with pytest.raises(BadModel, match="does not begin the answer as it shows it"):
            chat(PREFILLED, [ASK, LAST, MORE, SAY])


class TestTheServingPrompt:
    @pytest.mark.parametrize("template", [MOVES_SYSTEM, BEGINS_THOUGHT, CLOSES_OWN, MAY_THINK])
    @pytest.mark.parametrize("messages", [TALK, TALK[1:], THOUGHTS, [SYSTEM, *THOUGHTS]])
    def test_begins_the_last_sequence(self, smol, template, messages):
        smol.chat_template = template
        *_, last = encode_example(smol, {"messages": messages}, "instruction")
        text = smol.decode(encode_prompt(smol, {"messages": messages}, "instruction"))
        assert smol.decode(last.ids).startswith(text)
        assert (
            last.ids[: last.loss_mask.index(1)]
            == smol(text)["input_ids"][: last.loss_mask.index(1)]
        )
