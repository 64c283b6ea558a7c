"""Thoughts: what a reasoning model writes between two tags before it answers."""

from __future__ import annotations

import re
from typing import NamedTuple

from tasks.chat.messages import Message, content_of


class Tags(NamedTuple):
    """What a thought stands between."""

    opening: str
    closing: str


KNOWN = (
    *(Tags(f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning")),
    Tags("[THINK]", "[/THINK]"),
)
"""The tags of published models."""

_AT_END = re.compile(r"(?:<([A-Za-z][\w-]*)>|\[([A-Z][A-Z_]*)\])\s*\Z")


def tags_opened(prompt: str) -> Tags | None:
    """The tags of which a prompt ends with the opening one, whatever their name."""
    found = _AT_END.search(prompt)
    if found is None:
        return None
    angle, square = found.groups()
    return Tags(f"<{angle}>", f"</{angle}>") if angle else Tags(f"[{square}]", f"[/{square}]")


def tags_known(template: str) -> Tags | None:
    """The tags that the source of a chat template handles."""
    return next((tags for tags in KNOWN if tags.closing in template), None)


def split_thought(text: str, tags: Tags | None, *, begun: bool = False) -> tuple[str, str]:
    """What of an answer is thought, and what is said.

    Args:
        text: The answer. Its thought may lack the opening tag, which prompts write themselves.
        tags: That the thought stands between; None where nobody thinks.
        begun: Whether it was written behind an opening tag: without the closing one, all of it is
            a thought.
    """
    if tags is None:
        return "", text
    before, closing, behind = text.partition(tags.closing)
    opened = before.lstrip().startswith(tags.opening)
    if closing and (opened or tags.opening not in before):
        return before.strip().removeprefix(tags.opening).strip(), behind
    if not closing and (opened or begun):
        return before.strip().removeprefix(tags.opening).strip(), ""
    return "", text


def thought_of(message: Message) -> str:
    """What a message has as a thought beside its content."""
    thought = message.get("reasoning_content")
    return thought if isinstance(thought, str) else ""


def thought_and_said(message: Message, tags: Tags | None) -> tuple[str, str]:
    """A message's whole thought, and what it says."""
    inside, said = split_thought(content_of(message), tags)
    return "\n".join(filter(None, (thought_of(message).strip(), inside))), said
