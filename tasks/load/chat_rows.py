"""Parses conversations in rows: messages, roles, tool calls and the order of turns."""

from __future__ import annotations

import datetime
import math
from typing import Any, NoReturn

import orjson

from tasks.contracts.errors import BadData, EmptyValue
from tasks.load.json_values import parse_json

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class Record:
    """One record, its values accessed by the field names of the row formats.

    Args:
        record: Values by column.
        column_names: The column of each field, where the names differ.
        where: File and row, for messages.
        drop_nulls: Whether null fields inside nested values are removed.
    """

    def __init__(
        self, record: dict[str, Any], column_names: dict[str, str], where: str, drop_nulls: bool
    ) -> None:
        self._record, self._column_names, self._drop_nulls = record, column_names, drop_nulls
        self.where = where

    def column(self, field: str) -> str:
        """Return the column of a field."""
        return self._column_names.get(field, field)

    def value(self, field: str) -> Any:
        """Return a field's value; None if it is absent."""
        value = self._record.get(self.column(field))
        if self._drop_nulls and isinstance(value, list | dict):
            return self._plain(value, field)
        return value

    def _plain(self, value: Any, field: str) -> Any:
        """Return a nested value without nulls, checked to be one that JSON can hold."""
        if isinstance(value, dict):
            return {
                name: self._plain(each, field) for name, each in value.items() if each is not None
            }
        if isinstance(value, list):
            return [self._plain(each, field) for each in value]
        if isinstance(value, datetime.date):  # or a datetime
            return value.isoformat()
        if isinstance(value, float) and not math.isfinite(value):
            self._no_json(repr(value), field)
        if value is not None and not isinstance(value, str | int | float):
            self._no_json(f"a value of type {type(value).__name__}", field)
        return value

    def _no_json(self, found: str, field: str) -> NoReturn:
        self.bad(
            f"{found} in {self.column(field)!r}",
            "texts, numbers, booleans and nulls, as in JSON",
            "write it as a text or a number",
        )

    def bad(self, found: str, expected: str, fix: str) -> NoReturn:
        """Raise BadData for this record."""
        raise BadData(self.where, found, expected, fix)

    def empty(self, found: str) -> NoReturn:
        """Raise EmptyValue for this record."""
        raise EmptyValue(self.where, found, "a non-empty text", "fill in or remove the row")

    def text(self, field: str) -> str:
        """Return a non-empty text."""
        value, name = self.value(field), self.column(field)
        if isinstance(value, str):
            if value and not value.isspace():
                return value
        elif value is not None:
            self.bad(
                f"{json_type(value)} in {name!r}",
                "a text",
                f"set data.columns.{field} to a column of texts"
                + (
                    "; for chat messages, use the row format messages"
                    if isinstance(value, list)
                    else ""
                ),
            )
        self.empty(f"no text in {name!r}")

    def optional_text(self, field: str) -> str:
        """Return a text; empty if there is none."""
        value = self.value(field)
        if value is None or (isinstance(value, str) and (not value or value.isspace())):
            return ""
        return self.text(field)

    def system(self) -> list[dict[str, Any]]:
        """Return the system message, if the row has a column for it."""
        text = self.optional_text("system")
        return [{"role": "system", "content": text}] if text else []

    def messages(self, field: str) -> list[dict[str, Any]]:
        """Return a conversation, given as a list of messages or as JSON."""
        value, name = self.value(field), self.column(field)
        if isinstance(value, str):
            try:
                value = parse_json(value)
            except orjson.JSONDecodeError:
                self.bad(
                    f"invalid JSON in {name!r}",
                    "a list of messages, or such a list as JSON",
                    "write the column as JSON (not as a Python repr), or use JSON lines",
                )
        if not isinstance(value, list) or not value:
            self.bad(
                f"{'an empty list' if value == [] else json_type(value)} in {name!r}",
                "a list of messages, each with role and content",
                f"correct or remove the row, or set data.columns.{field} to another column",
            )
        return [_Turn(self, each, number, name).parse() for number, each in enumerate(value, 1)]

    def messages_or_text(self, field: str, role: str) -> list[dict[str, Any]]:
        """Return a conversation; a plain text becomes one message of this role."""
        value = self.value(field)
        if isinstance(value, list) or (isinstance(value, str) and _is_conversation(value)):
            return self.messages(field)
        return [{"role": role, "content": self.text(field)}]

    def tools(self) -> list[dict[str, Any]]:
        """Return the available tools, given as a list of JSON schemas or as JSON."""
        value, name = self.value("tools"), self.column("tools")
        if isinstance(value, str) and value.strip():
            try:
                value = parse_json(value)
            except orjson.JSONDecodeError:
                value = 0
        if not value and value != 0:
            return []
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self.bad(
                f"invalid tools in {name!r}",
                "a list of JSON schemas, or such a list as JSON",
                "correct or remove the row",
            )
        return value

    def check_turn_order(self, messages: list[dict[str, Any]], field: str) -> None:
        """Raise BadData if the order of turns is one that chat templates do not support."""
        count, name = len(messages), self.column(field)
        if not any(each["role"] == "assistant" for each in messages):
            self.bad(
                f"no assistant turn in {name!r} ({_turns(count)})",
                "an assistant turn, for the model to learn",
                "add the answer, or remove the row",
            )
        before = None
        for number, message in enumerate(messages, 1):
            problem = _out_of_order(message, before)
            if problem:
                after = f"after {_a_turn(before['role'])}" if before else "at the beginning"
                self.bad(
                    f"{_a_turn(message['role'])} {after} in {name!r} (turn {number} of {count})",
                    problem,
                    "merge the two turns, or correct the roles"
                    if before and before["role"] == message["role"]
                    else "correct the roles, or remove the row",
                )
            before = message
        if messages[-1]["role"] != "assistant":
            self.bad(
                f"a conversation of {_turns(count)} in {name!r} that ends with "
                f"{_a_turn(messages[-1]['role'])}",
                "an assistant turn at the end, for the model to learn",
                "remove the last turn",
            )


def _out_of_order(message: dict[str, Any], before: dict[str, Any] | None) -> str:
    """Return what was expected, if a turn cannot follow the one before it; else an empty string."""
    role, last = message["role"], before["role"] if before else ""
    if role == "tool":
        follows = last == "tool" or (last == "assistant" and "tool_calls" in before)
        return "" if follows else "a tool turn only after an assistant turn with tool calls"
    allowed = {
        "": ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("user",),
        "tool": ("assistant",),
    }[last]
    if role in allowed:
        return ""
    if role == "system":
        return "a system turn only at the beginning"
    return f"{_a_turn(' or '.join(allowed))}: user and assistant alternate"


class _Turn:
    """One turn of a conversation, as the data have it."""

    def __init__(self, record: Record, turn: Any, number: int, column: str) -> None:
        self._record, self._turn = record, turn
        self._place = f"turn {number} of {column!r}"

    def parse(self) -> dict[str, Any]:
        """Return the message with the fields that chat templates use."""
        if not isinstance(self._turn, dict):
            self._bad(json_type(self._turn), "role and content", "correct or remove the row")
        given = self._first("role", "from")
        name = given.strip().lower() if isinstance(given, str) else ""
        role = _ROLES.get(name)
        if role is None:
            self._bad(
                "no role" if given is None else f"the unknown role {given!r}",
                f"one of {', '.join(_ROLES)}",
                "correct the role",
            )
        content = self._content()
        if name == "function_call":
            return {"role": role, "content": "", "tool_calls": self._calls(content)}
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant" and self._turn.get("tool_calls"):
            message["tool_calls"] = self._calls(self._turn["tool_calls"])
        # A tool may return nothing.
        if role != "tool" and "tool_calls" not in message and not content.strip():
            self._record.empty(f"no content in {self._place}")
        for field in ("name", "tool_call_id"):
            if isinstance(self._turn.get(field), str) and self._turn[field]:
                message[field] = self._turn[field]
        reasoning = self._turn.get("reasoning_content")
        if role == "assistant" and isinstance(reasoning, str) and reasoning.strip():
            message["reasoning_content"] = reasoning
        return message

    def _bad(self, found: str, expected: str, fix: str) -> NoReturn:
        self._record.bad(f"{found} in {self._place}", expected, fix)

    def _first(self, *names: str) -> Any:
        return next((self._turn[each] for each in names if self._turn.get(each) is not None), None)

    def _content(self) -> str:
        value = self._first("content", "value")
        if isinstance(value, list):
            return "".join(self._part(part) for part in value)
        if value is None:
            return ""
        if not isinstance(value, str):
            self._bad(
                f"{json_type(value)} as content",
                "a text, or a list of text parts",
                "correct the row",
            )
        return value

    def _part(self, part: Any) -> str:
        type_ = part.get("type") if isinstance(part, dict) else json_type(part)
        if type_ != "text" or not isinstance(part.get("text"), str):
            self._bad(
                f"a part of type {type_!r}",
                "parts of type 'text': only text models can be trained",
                "remove the part or the row",
            )
        return part["text"]

    def _calls(self, value: Any) -> list[dict[str, Any]]:
        if isinstance(value, str):
            try:
                value = parse_json(value)
            except orjson.JSONDecodeError:
                value = None
        calls = value if isinstance(value, list) else [value]
        return [self._call(each) for each in calls]

    def _call(self, call: Any) -> dict[str, Any]:
        inner = call.get("function", call) if isinstance(call, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else None
        arguments = inner.get("arguments") if isinstance(inner, dict) else None
        if isinstance(arguments, str):
            # Some APIs return arguments as JSON text; chat templates expect an object.
            try:
                arguments = parse_json(arguments or "{}")
            except orjson.JSONDecodeError:
                arguments = 0
        arguments = {} if arguments is None else arguments
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            self._bad(
                "an invalid tool call",
                'a name and arguments: {"name": "…", "arguments": {…}}',
                "correct or remove the row",
            )
        found = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return found | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _is_conversation(text: str) -> bool:
    """Whether a text is a conversation as JSON, as in CSV files."""
    if not text.lstrip().startswith("[") or '"' not in text:
        return False
    try:
        found = parse_json(text)
    except orjson.JSONDecodeError:
        return False
    return bool(found) and all(
        isinstance(each, dict) and ("role" in each or "from" in each) for each in found
    )


def _a_turn(role: str) -> str:
    return f"{'an' if role.startswith('assistant') else 'a'} {role} turn"


def _turns(count: int) -> str:
    return f"{count} turn{'s' if count > 1 else ''}"


def json_type(value: Any) -> str:
    """Return the type of a JSON value with its article, for messages."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
