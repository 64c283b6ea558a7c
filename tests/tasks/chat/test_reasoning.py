"""What of an answer is thought, and what is said."""

import pytest

from tasks.chat.encoder import spoken, text_of
from tasks.chat.reasoning import Tags, split_thought, tags_known, tags_opened
from tests.tasks.chat.conversations import (
    ASK,
    BEGINS_THOUGHT,
    HIDES_THOUGHT,
    LAST,
    MAY_THINK,
    MUST_THINK,
)

THINK = Tags("<think>", "</think>")
EXAMPLE = {"messages": [ASK, LAST]}


class TestTags:
    @pytest.mark.parametrize(
        ("prompt", "tags"),
        [
            ("<|assistant|><think>\n", THINK),
            ("assistant\n<deep-thought>", Tags("<deep-thought>", "</deep-thought>")),
            ("[/INST][THINK]", Tags("[THINK]", "[/THINK]")),
            ("[INST] Hello[/INST]", None),
            ("<think></think>", None),
            ("<|im_start|>assistant\n", None),
            ("<|assistant|>", None),
        ],
    )
    def test_are_opened_at_the_end_of_a_prompt(self, prompt, tags):
        assert tags_opened(prompt) == tags

    def test_are_known_by_what_a_template_handles(self):
        assert tags_known(MAY_THINK) == THINK
        assert tags_known("{{ messages }}") is None


class TestAThought:
    @pytest.mark.parametrize(
        ("text", "begun", "parts"),
        [
            ("<think>\ntwo\n</think>\n\nFour.", False, ("two", "\n\nFour.")),
            ("two</think>Four.", False, ("two", "Four.")),
            ("<think>\n\n</think>\n\nFour.", False, ("", "\n\nFour.")),
            ("Four.", False, ("", "Four.")),
            ("two", True, ("two", "")),
            ("<think>two", False, ("two", "")),
            ("Between <think> and </think>.", False, ("", "Between <think> and </think>.")),
        ],
    )
    def test_stands_before_what_is_said(self, text, begun, parts):
        assert split_thought(text, THINK, begun=begun) == parts

    def test_is_none_where_nobody_thinks(self):
        assert split_thought("<think>two</think>Four.", None) == ("", "<think>two</think>Four.")


class TestWhatIsSpoken:
    @pytest.mark.parametrize(
        ("template", "text", "said"),
        [
            (BEGINS_THOUGHT, "two</think>\n\nFour.", "Four."),
            (MUST_THINK, "two</think>\n\nFour.", "Four."),
            (BEGINS_THOUGHT, "two, and two", ""),
            (MUST_THINK, "two, and two", ""),
            (MAY_THINK, "<think>\n\n</think>\n\nFour.", "Four."),
            (MAY_THINK, "<think>\ntwo, and", ""),
            (MAY_THINK, "Four.", "Four."),
            (HIDES_THOUGHT, "<think>two</think>Four.", "Four."),
            (None, "<think>two</think>Four.", "<think>two</think>Four."),
        ],
    )
    def test_is_behind_the_thought_that_was_written(self, smol, template, text, said):
        smol.chat_template = template or smol.chat_template
        assert spoken(smol, EXAMPLE, "instruction", text, written=True) == said

    def test_is_all_of_a_known_answer_without_a_thought(self, smol):
        smol.chat_template = BEGINS_THOUGHT
        assert spoken(smol, EXAMPLE, "instruction", "Four.", written=False) == "Four."

    def test_is_all_of_a_text(self, smol):
        smol.chat_template = BEGINS_THOUGHT
        text = "two</think>Four."
        assert spoken(smol, {"text": "x"}, "completion", text, written=True) == text


class TestTheTextOfAnAnswer:
    def test_keeps_special_tokens_that_a_thought_stands_between(self, smol):
        smol.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "[IMG]"]})
        smol.chat_template = HIDES_THOUGHT.replace("</think>", "[/THINK]")
        ids = smol.encode("[THINK]two[/THINK]Four.[IMG]<|im_end|>")
        text = text_of(smol, EXAMPLE, "instruction", ids)
        assert text == "[THINK]two[/THINK]Four."
        assert spoken(smol, EXAMPLE, "instruction", text, written=True) == "Four."

    @pytest.mark.parametrize("task", ["instruction", "completion"])
    def test_has_none_where_nobody_thinks(self, smol, task):
        ids = [*smol.encode("Four<b>.<|im_end|>\n"), smol.unk_token_id]
        assert text_of(smol, EXAMPLE, task, ids) == "Four<b>."
