"""Whether what a chat template made of a conversation shows all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tasks.chat.messages import Message, as_object, content_of, short
from tasks.chat.reasoning import thought_of
from tasks.chat.template import Template
from tasks.contracts.errors import BadModel


def check_shown(
    template: Template,
    texts: list[str],
    messages: list[Message],
    tools: list[Any] | None,
    when_new: Callable[[int], str],
) -> None:
    """Refuse a template that leaves out a message, a tool call or a tool.

    Args:
        template: The template.
        texts: What it made of the conversation: one rendering, or one for each turn.
        messages: The conversation.
        tools: That the assistant may call.
        when_new: The assistant's message at a place, as it is shown when it is the last. Templates
            leave the thinking of earlier turns out.

    Raises:
        BadModel: The template leaves something out.
    """
    for place, message in enumerate(messages):
        content, speaks = content_of(message), message["role"] == "assistant"
        for does, part in (("says", content), ("thinks", thought_of(message) if speaks else "")):
            if not is_shown(part, texts) and not (speaks and is_shown(part, [when_new(place)])):
                raise _left_out(f"what the {message['role']} {does} ({short(part)})")
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            leaves = [function.get("name", ""), *_leaves(as_object(function.get("arguments")))]
            without = {**message, "content": content, "tool_calls": None}
            if not all(is_shown(leaf, texts) for leaf in leaves) or _same(
                template, messages[:place], (message, tools), (without, tools)
            ):
                raise _left_out(f"a tool call ({short(str(function.get('name')))})")
    for tool in tools or ():
        name = tool.get("function", tool).get("name", "")
        ways = (messages[-1], tools), (messages[-1], None)
        if not is_shown(name, texts) or _same(template, messages[:-1], *ways):
            raise _left_out(f"the tools that the assistant may call ({short(name)})")


def _same(template: Template, messages: list[Message], *ways: tuple[Message, Any]) -> bool:
    """Whether a conversation reads alike with another last message or other tools: a short name
    may be found in the text by chance."""
    try:
        return len({template.render([*messages, each], tools) for each, tools in ways}) == 1
    except BadModel:
        return False  # it minds what is missing


def is_shown(content: str, texts: list[str]) -> bool:
    """Whether a text is in one of several, if need be with other spaces or quoted as JSON."""
    wanted = content.strip()
    if any(wanted in text for text in texts):
        return True
    # Quoted as JSON, or with other spaces.
    ways = {wanted, json.dumps(wanted)[1:-1], json.dumps(wanted, ensure_ascii=False)[1:-1]}
    dense = ["".join(text.split()) for text in texts]
    return any("".join(way.split()) in text for way in ways for text in dense)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


def _left_out(what: str) -> BadModel:
    return BadModel(
        "model.chat_template",
        f"a chat template that does not show {what}",
        "a template that shows every message, tool and tool call",
        "set model.chat_template to one that does, or take it out of the data",
    )
