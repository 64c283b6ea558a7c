"""What the messages of a conversation hold, and ways to write them for a template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tasks.contracts.errors import BadData

Message = dict[str, Any]

EXCERPT = 60
"""Characters of what is quoted in an error."""


def conversation_of(example: dict[str, Any], task: str) -> list[Message]:
    """An example's conversation; of a preference, the one with the chosen answer."""
    return example["prompt"] + example["chosen"] if task == "preference" else example["messages"]


def assistant_turns(messages: list[Message]) -> list[int]:
    """The places of what the assistant says.

    Raises:
        BadData: It says nothing.
    """
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise BadData(
            "data",
            f"a conversation without the assistant (roles: {', '.join(roles_of(messages))})",
            "at least one turn of the assistant, to learn from",
            "leave it out, or name the roles as user and assistant",
        )
    return turns


def content_of(message: Message) -> str:
    """What a message says, as text; of parts, one a line."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))


def roles_of(messages: list[Message]) -> list[str]:
    """Who speaks, in order."""
    return [str(message.get("role")) for message in messages]


def ways(messages: list[Message]) -> Iterator[list[Message]]:
    """Ways to write the same conversation: templates differ in what they take."""
    clean = [
        {name: value for name, value in message.items() if value is not None}
        for message in messages
    ]
    calls = any("tool_calls" in message for message in clean)
    yield [_with_calls(message, as_object) for message in clean] if calls else clean
    if calls or not all("content" in message for message in clean):
        filled = [{"content": "", **message} for message in clean]
        yield [_with_calls(message, as_object) for message in filled]
        yield [_with_calls(message, _as_text) for message in filled]


def _with_calls(message: Message, arguments: Any) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        function = {**function, "arguments": arguments(function.get("arguments", {}))}
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}


def as_object(arguments: Any) -> Any:
    """The arguments of a tool call, which may be written as JSON."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def short(text: str) -> str:
    """A text as it is quoted in an error."""
    text = " ".join(text.split())
    return repr(text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…")
