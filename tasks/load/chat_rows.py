"""Conversations in rows: roles, turns and their order."""

from __future__ import annotations

from typing import Any, NoReturn

import orjson

from tasks.contracts.errors import BadData

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


# One record


class Record:
    """A record's values under the names that the forms give them."""

    def __init__(
        self, record: dict[str, Any], named: dict[str, str], where: str, with_nulls: bool
    ) -> None:
        self._record, self._named, self._with_nulls = record, named, with_nulls
        self.where = where

    def name(self, field: str) -> str:
        return self._named.get(field, field)

    def value(self, field: str) -> Any:
        value = self._record.get(self.name(field))
        if self._with_nulls and isinstance(value, list | dict):
            return _without_nulls(value)
        return value

    def bad(self, found: str, expected: str, fix: str) -> NoReturn:
        raise BadData(self.where, found, expected, fix)

    def text(self, field: str) -> str:
        """A text that is not empty."""
        value, name = self.value(field), self.name(field)
        if isinstance(value, str):
            if value and not value.isspace():
                return value
        elif value is not None:
            self.bad(
                f"{kind(value)} in {name!r}",
                "a text",
                f"name a column of texts as data.columns.{field}"
                + ("; chat messages have a form of their own" if isinstance(value, list) else ""),
            )
        self.bad(f"no text in {name!r}", "a text that is not empty", "fill in or remove the row")

    def optional_text(self, field: str) -> str:
        """A text, or an empty one where there is none."""
        value = self.value(field)
        if value is None or (isinstance(value, str) and (not value or value.isspace())):
            return ""
        return self.text(field)

    def system(self) -> list[dict[str, Any]]:
        """The system turn, where a column of its own holds it."""
        text = self.optional_text("system")
        return [{"role": "system", "content": text}] if text else []

    def turns(self, field: str) -> list[dict[str, Any]]:
        """A conversation: a list of turns, or that as JSON."""
        value, name = self.value(field), self.name(field)
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                self.bad(
                    f"a text that is no JSON in {name!r}",
                    "a list of turns, or that as JSON",
                    "write the column as JSON (not as Python prints it), or use JSON lines",
                )
        if not isinstance(value, list) or not value:
            self.bad(
                f"{'an empty list' if value == [] else kind(value)} in {name!r}",
                "a list of turns, each with role and content",
                f"correct or remove the row, or name another column as data.columns.{field}",
            )
        return [_Turn(self, each, number, name).message() for number, each in enumerate(value, 1)]

    def turns_or_text(self, field: str, role: str) -> list[dict[str, Any]]:
        """A conversation, or a text that becomes one turn of this role."""
        value = self.value(field)
        if isinstance(value, list) or (isinstance(value, str) and _is_conversation(value)):
            return self.turns(field)
        return [{"role": role, "content": self.text(field)}]

    def tools(self) -> list[dict[str, Any]]:
        """The tools on offer: JSON schemas, or these as JSON."""
        value, name = self.value("tools"), self.name("tools")
        if isinstance(value, str) and value.strip():
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                value = 0
        if not value and value != 0:
            return []
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self.bad(
                f"something else than tools in {name!r}",
                "a list of JSON schemas, or that as JSON",
                "correct or remove the row",
            )
        return value

    def check_order(self, messages: list[dict[str, Any]], field: str) -> None:
        """Refuse turns in an order that no chat template knows."""
        count, name = len(messages), self.name(field)
        if not any(each["role"] == "assistant" for each in messages):
            self.bad(
                f"no assistant turn in {name!r} ({_turns(count)})",
                "an assistant turn: it is what is learnt",
                "add the answer, or remove the row",
            )
        before = None
        for number, message in enumerate(messages, 1):
            problem = _out_of_order(message, before)
            if problem:
                after = f"after one of {before['role']}" if before else "at the beginning"
                self.bad(
                    f"a turn of {message['role']} {after} in {name!r} (turn {number} of {count})",
                    problem,
                    "join the two turns, or correct the roles"
                    if before and before["role"] == message["role"]
                    else "correct the roles, or remove the row",
                )
            before = message
        if messages[-1]["role"] != "assistant":
            self.bad(
                f"a conversation of {_turns(count)} in {name!r} that ends with a "
                f"{messages[-1]['role']} turn",
                "an assistant turn at the end: it is what is learnt",
                "remove the last turn",
            )


def _out_of_order(message: dict[str, Any], before: dict[str, Any] | None) -> str:
    """What should have been there instead, where a turn cannot follow another; else nothing."""
    role, last = message["role"], before["role"] if before else ""
    if role == "tool":
        follows = last == "tool" or (last == "assistant" and "tool_calls" in before)
        return "" if follows else "a tool's turn only after an assistant turn with tool calls"
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
    return f"a turn of {' or '.join(allowed)}: user and assistant take turns"


class _Turn:
    """One turn of a conversation."""

    def __init__(self, record: Record, turn: Any, number: int, column: str) -> None:
        self._record, self._turn = record, turn
        self._place = f"turn {number} of {column!r}"

    def message(self) -> dict[str, Any]:
        """The turn with the fields that count."""
        if not isinstance(self._turn, dict):
            self._bad(kind(self._turn), "role and content", "correct or remove the row")
        said = self._first("role", "from")
        word = said.strip().lower() if isinstance(said, str) else ""
        role = _ROLES.get(word)
        if role is None:
            self._bad(
                "no role" if said is None else f"the unknown role {said!r}",
                f"one of {', '.join(_ROLES)}",
                "correct the role",
            )
        content = self._content()
        if word == "function_call":
            return {"role": role, "content": "", "tool_calls": self._calls(content)}
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant" and self._turn.get("tool_calls"):
            message["tool_calls"] = self._calls(self._turn["tool_calls"])
        # A tool may well say nothing.
        if role != "tool" and "tool_calls" not in message and not content.strip():
            self._bad("no content", "a text that is not empty", "fill in or remove the row")
        for name in ("name", "tool_call_id"):
            if isinstance(self._turn.get(name), str) and self._turn[name]:
                message[name] = self._turn[name]
        thought = self._turn.get("reasoning_content")
        if role == "assistant" and isinstance(thought, str) and thought.strip():
            message["reasoning_content"] = thought
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
                f"{kind(value)} as content", "a text, or a list of text parts", "correct the row"
            )
        return value

    def _part(self, part: Any) -> str:
        said = part.get("type") if isinstance(part, dict) else kind(part)
        if said != "text" or not isinstance(part.get("text"), str):
            self._bad(
                f"a part of type {said!r}",
                "parts of type 'text': models of text alone are trained here",
                "remove the part or the row",
            )
        return part["text"]

    def _calls(self, value: Any) -> list[dict[str, Any]]:
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                value = None
        calls = value if isinstance(value, list) else [value]
        return [self._call(each) for each in calls]

    def _call(self, call: Any) -> dict[str, Any]:
        inner = call.get("function", call) if isinstance(call, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else None
        arguments = inner.get("arguments") if isinstance(inner, dict) else None
        if isinstance(arguments, str):
            # As some services write them; chat templates want the object.
            try:
                arguments = orjson.loads(arguments or "{}")
            except orjson.JSONDecodeError:
                arguments = 0
        arguments = {} if arguments is None else arguments
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            self._bad(
                "a tool call that cannot be read",
                'a name and arguments: {"name": "…", "arguments": {…}}',
                "correct or remove the row",
            )
        found = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return found | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _is_conversation(text: str) -> bool:
    """Whether a text is a conversation as JSON, as tables without lists hold it."""
    if not text.lstrip().startswith("[") or '"' not in text:
        return False
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return bool(found) and all(
        isinstance(each, dict) and ("role" in each or "from" in each) for each in found
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _turns(count: int) -> str:
    return f"{count} turn{'s' if count > 1 else ''}"


def kind(value: Any) -> str:
    """What a JSON value is, for messages."""
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number"}
    if value is None:
        return "nothing"
    return names.get(type(value), "a number" if isinstance(value, float) else type(value).__name__)
