"""Split the reasoning of a model from its answer.

A reasoning model writes its reasoning between two tags, such as `<think>` and `</think>`, before
it answers. Scores look only at the text after the reasoning block.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tasks.chat.messages import Message, text_content


class ReasoningTags(NamedTuple):
    """The tags around a reasoning block."""

    opening: str
    closing: str


KNOWN_TAGS = (
    *(
        ReasoningTags(f"<{name}>", f"</{name}>")
        for name in ("think", "thinking", "thought", "reasoning")
    ),
    ReasoningTags("[THINK]", "[/THINK]"),
)
"""The tags of published models."""

_OPENING_TAG_AT_END = re.compile(r"(?:<([A-Za-z][\w-]*)>|\[([A-Z][A-Z_]*)\])\s*\Z")


def tags_opened_by(prompt: str) -> ReasoningTags | None:
    """The tags whose opening tag ends the prompt, whatever their name; None if there is none."""
    found = _OPENING_TAG_AT_END.search(prompt)
    if found is None:
        return None
    angle, square = found.groups()
    if angle:
        return ReasoningTags(f"<{angle}>", f"</{angle}>")
    return ReasoningTags(f"[{square}]", f"[/{square}]")


def tags_handled_by(template: str) -> ReasoningTags | None:
    """The known tags that occur in the source of a chat template; None if there are none."""
    return next((tags for tags in KNOWN_TAGS if tags.closing in template), None)


def split_reasoning(
    text: str, tags: ReasoningTags | None, *, in_reasoning: bool = False
) -> tuple[str, str]:
    """Split a generated or given text into reasoning and answer.

    Args:
        text: The text. The opening tag may be missing: some prompts end with it.
        tags: The tags around the reasoning; None for a model that does not reason.
        in_reasoning: Whether the text continues a prompt that ends with the opening tag. Without a
            closing tag, all of it is then reasoning.

    Returns:
        The reasoning without its tags, and the answer. Either may be empty.
    """
    if tags is None:
        return "", text
    before, closing, after = text.partition(tags.closing)
    opened = before.lstrip().startswith(tags.opening)
    if closing and (opened or tags.opening not in before):
        return before.strip().removeprefix(tags.opening).strip(), after
    if not closing and (opened or in_reasoning):
        return before.strip().removeprefix(tags.opening).strip(), ""
    return "", text


def reasoning_content(message: Message) -> str:
    """The `reasoning_content` of a message; empty if it has none."""
    reasoning = message.get("reasoning_content")
    return reasoning if isinstance(reasoning, str) else ""


def reasoning_and_answer(message: Message, tags: ReasoningTags | None) -> tuple[str, str]:
    """All reasoning of a message (in `reasoning_content` and in its content), and its answer."""
    inline, answer = split_reasoning(text_content(message), tags)
    return "\n".join(filter(None, (reasoning_content(message).strip(), inline))), answer
