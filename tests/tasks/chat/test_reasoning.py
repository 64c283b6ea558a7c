"""Reasoning is split from the answer."""

import pytest

from tasks.chat.encoder import decode_answer, strip_reasoning
from tasks.chat.reasoning import ReasoningTags, split_reasoning, tags_handled_by, tags_opened_by
from tests.tasks.chat.conversations import (
    ASK,
    LAST,
    MAY_THINK,
    MUST_THINK,
    OPENS_REASONING,
    REMOVES_REASONING,
)

THINK = ReasoningTags("<think>", "</think>")
EXAMPLE = {"messages": [ASK, LAST]}


class TestTags:
    @pytest.mark.parametrize(
        ("prompt", "tags"),
        [
            ("<|assistant|><think>\n", THINK),
            ("assistant\n<deep-thought>", ReasoningTags("<deep-thought>", "</deep-thought>")),
            ("[/INST][THINK]", ReasoningTags("[THINK]", "[/THINK]")),
            ("[INST] Hello[/INST]", None),
            ("<think></think>", None),
            ("<|im_start|>assistant\n", None),
            ("<|assistant|>", None),
        ],
    )
    def test_are_found_at_the_end_of_a_prompt(self, prompt, tags):
        assert tags_opened_by(prompt) == tags

    def test_are_found_in_the_source_of_a_template(self):
        assert tags_handled_by(MAY_THINK) == THINK
        assert tags_handled_by("{{ messages }}") is None


class TestSplit:
    @pytest.mark.parametrize(
        ("text", "in_reasoning", "parts"),
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
    def test_reasoning_precedes_the_answer(self, text, in_reasoning, parts):
        assert split_reasoning(text, THINK, in_reasoning=in_reasoning) == parts

    def test_a_model_without_tags_has_no_reasoning(self):
        assert split_reasoning("<think>two</think>Four.", None) == ("", "<think>two</think>Four.")


class TestStrippedAnswer:
    @pytest.mark.parametrize(
        ("template", "text", "said"),
        [
            (OPENS_REASONING, "two</think>\n\nFour.", "Four."),
            (MUST_THINK, "two</think>\n\nFour.", "Four."),
            (OPENS_REASONING, "two, and two", ""),
            (MUST_THINK, "two, and two", ""),
            (MAY_THINK, "<think>\n\n</think>\n\nFour.", "Four."),
            (MAY_THINK, "<think>\ntwo, and", ""),
            (MAY_THINK, "Four.", "Four."),
            (REMOVES_REASONING, "<think>two</think>Four.", "Four."),
            (None, "<think>two</think>Four.", "<think>two</think>Four."),
        ],
    )
    def test_of_a_generated_text_follows_the_reasoning(self, smol, template, text, said):
        smol.chat_template = template or smol.chat_template
        assert strip_reasoning(smol, EXAMPLE, "instruction", text, generated=True) == said

    def test_of_a_given_answer_without_reasoning_is_all_of_it(self, smol):
        smol.chat_template = OPENS_REASONING
        assert strip_reasoning(smol, EXAMPLE, "instruction", "Four.", generated=False) == "Four."

    def test_of_a_completion_is_all_of_it(self, smol):
        smol.chat_template = OPENS_REASONING
        text = "two</think>Four."
        assert strip_reasoning(smol, {"text": "x"}, "completion", text, generated=True) == text


class TestDecodedAnswer:
    def test_keeps_reasoning_tags_that_are_special_tokens(self, smol):
        smol.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "[IMG]"]})
        smol.chat_template = REMOVES_REASONING.replace("</think>", "[/THINK]")
        ids = smol.encode("[THINK]two[/THINK]Four.[IMG]<|im_end|>")
        text = decode_answer(smol, EXAMPLE, "instruction", ids)
        assert text == "[THINK]two[/THINK]Four."
        assert strip_reasoning(smol, EXAMPLE, "instruction", text, generated=True) == "Four."

    @pytest.mark.parametrize("task", ["instruction", "completion"])
    def test_has_no_special_tokens_without_reasoning(self, smol, task):
        ids = [*smol.encode("Four<b>.<|im_end|>\n"), smol.unk_token_id]
        assert decode_answer(smol, EXAMPLE, task, ids) == "Four<b>."
