"""Check that a chat template rendered everything in a conversation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tasks.chat.messages import Message, parse_arguments, quote, text_content
from tasks.chat.reasoning import reasoning_content
from tasks.chat.template import Template
from tasks.contracts.errors import BadModel


def check_coverage(
    template: Template,
    texts: list[str],
    messages: list[Message],
    tools: list[Any] | None,
    render_as_last: Callable[[int], str],
) -> None:
    """Refuse a template that leaves out a message, a tool call or a tool.

    Args:
        template: The chat template.
        texts: Its renderings of the conversation: one in all, or one per assistant turn.
        messages: The conversation.
        tools: The tools that the assistant may call, as JSON schemas.
        render_as_last: Renders the conversation up to the assistant message at an index. Templates
            leave out the reasoning of earlier turns.

    Raises:
        BadModel: The template leaves something out.
    """
    for index, message in enumerate(messages):
        content, is_assistant = text_content(message), message["role"] == "assistant"
        reasoning = reasoning_content(message) if is_assistant else ""
        for kind, part in (("content", content), ("reasoning", reasoning)):
            if not contains_text(part, texts) and not (
                is_assistant and contains_text(part, [render_as_last(index)])
            ):
                raise _left_out(f"the {message['role']} message's {kind} ({quote(part)})")
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            leaves = [
                function.get("name", ""),
                *_leaves(parse_arguments(function.get("arguments"))),
            ]
            without = {**message, "content": content, "tool_calls": None}
            if not all(contains_text(leaf, texts) for leaf in leaves) or _renders_alike(
                template, messages[:index], (message, tools), (without, tools)
            ):
                raise _left_out(f"a tool call ({quote(str(function.get('name')))})")
    for tool in tools or ():
        name = tool.get("function", tool).get("name", "")
        variants = (messages[-1], tools), (messages[-1], None)
        if not contains_text(name, texts) or _renders_alike(template, messages[:-1], *variants):
            raise _left_out(f"the tools that the assistant may call ({quote(name)})")


def _renders_alike(
    template: Template, messages: list[Message], *variants: tuple[Message, Any]
) -> bool:
    """Whether each variant of last message and tools gives the same rendering.

    Finding a tool's name in the text is not enough: a short name may occur there by chance.
    """
    try:
        return len({template.render([*messages, each], tools) for each, tools in variants}) == 1
    except BadModel:
        return False  # The template refuses one of them, so it reads what is missing there.


def contains_text(content: str, texts: list[str]) -> bool:
    """Whether a text occurs in one of several: as is, quoted as JSON, or with other whitespace."""
    wanted = content.strip()
    if any(wanted in text for text in texts):
        return True
    forms = {wanted, json.dumps(wanted)[1:-1], json.dumps(wanted, ensure_ascii=False)[1:-1]}
    dense = ["".join(text.split()) for text in texts]
    return any("".join(form.split()) in text for form in forms for text in dense)


def _leaves(value: Any) -> Iterator[str]:
    """The strings and numbers of a JSON value, as text."""
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
        f"a chat template that leaves out {what}",
        "a template that renders every message, tool and tool call",
        "set model.chat_template to one that does, or remove it from the data",
    )
