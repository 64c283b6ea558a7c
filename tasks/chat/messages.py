"""Read the messages of a conversation, and vary how they are passed to a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tasks.contracts.errors import BadData

Message = dict[str, Any]

QUOTE_LENGTH = 60
"""Characters of a text that an error message quotes."""


def conversation_of(example: dict[str, Any], task: str) -> list[Message]:
    """The conversation of an example; for a preference, the one with the chosen answer."""
    return example["prompt"] + example["chosen"] if task == "preference" else example["messages"]


def assistant_turns(messages: list[Message]) -> list[int]:
    """The indexes of the assistant's messages.

    Raises:
        BadData: There are none.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise BadData(
            "data",
            f"a conversation without an assistant turn (roles: {', '.join(roles_of(messages))})",
            "at least one assistant turn to train on",
            "leave it out, or name the roles user and assistant",
        )
    return turns


def text_content(message: Message) -> str:
    """The content of a message; empty if it has none. Loading has made it one text."""
    return message.get("content") or ""


def roles_of(messages: list[Message]) -> list[str]:
    """The role of each message."""
    return [str(message.get("role")) for message in messages]


def message_variants(messages: list[Message]) -> Iterator[list[Message]]:
    """Equivalent forms of a conversation: templates differ in which of them they accept.

    The forms differ in whether an empty content is present, and in whether the arguments of tool
    calls are objects or JSON text.
    """
    clean = [
        {name: value for name, value in message.items() if value is not None}
        for message in messages
    ]
    calls = any("tool_calls" in message for message in clean)
    yield [_with_calls(message, parse_arguments) for message in clean] if calls else clean
    if calls or not all("content" in message for message in clean):
        filled = [{"content": "", **message} for message in clean]
        yield [_with_calls(message, parse_arguments) for message in filled]
        yield [_with_calls(message, _as_json) for message in filled]


def _with_calls(message: Message, convert: Any) -> Message:
    """The message with the arguments of its tool calls converted."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        function = {**function, "arguments": convert(function.get("arguments", {}))}
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}


def parse_arguments(arguments: Any) -> Any:
    """The arguments of a tool call as an object, if they are JSON text; else unchanged."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _as_json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def quote(text: str) -> str:
    """A text as error messages quote it: on one line and shortened."""
    text = " ".join(text.split())
    return repr(text if len(text) <= QUOTE_LENGTH else f"{text[:QUOTE_LENGTH]}…")
