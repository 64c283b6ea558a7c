"""What the rows of language-model data may look like, and the one form that they all become.

A record is recognised by its columns. Where several forms fit, the most specific one wins:
preference, messages, sharegpt, alpaca, prompt-completion, text, in this order, of those that the
task can be trained on. A column without a value (null) counts as absent, so one table may hold
several forms.

| form              | columns (`?`: may be absent)   | becomes                                     |
|-------------------|--------------------------------|---------------------------------------------|
| text              | text                           | a text, learnt from beginning to end        |
| prompt-completion | prompt, completion             | a text to go on with; in chat, user's turn  |
|                   |                                | and answer                                  |
| alpaca            | instruction, input?, output,   | a user's turn (the input comes after an     |
|                   | system?                        | empty line) and its answer                  |
| messages          | messages, tools?               | chat: turns of role and content             |
| sharegpt          | conversations, system?, tools? | chat: turns of from and value               |
| preference        | prompt?, chosen, rejected      | a chat and two ways to go on; without a     |
|                   |                                | prompt, it is what both begin with          |

A turn keeps `role`, `content`, `tool_calls`, `name`, `tool_call_id`, and of the assistant
`reasoning_content`, its thought; nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import orjson

from tasks.contracts.training import FORMS, Form, Task
from tasks.errors import BadData, BadRecipe

CLASSES: Task = "text-classification"
"""The one task whose rows have no form: a text and its label."""

# The most specific first.
_REQUIRED: dict[Form, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
_OPTIONAL: dict[Form, tuple[str, ...]] = {
    "preference": ("prompt",),
    "messages": ("tools",),
    "sharegpt": ("system", "tools"),
    "alpaca": ("input", "system"),
}
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
# What data call such columns elsewhere: only ever proposed, never assumed.
_ALSO_CALLED = {
    "text": ("content", "body", "document", "article"),
    "prompt": ("question", "query", "q", "instruction", "input", "problem"),
    "completion": ("answer", "response", "a", "output", "reply", "target", "solution"),
    "instruction": ("prompt", "question", "query"),
    "output": ("response", "answer", "completion"),
    "messages": ("conversation", "conversations", "dialog", "dialogue", "chat", "turns"),
    "conversations": ("conversation", "messages", "dialog", "dialogue", "chat", "turns"),
    "chosen": ("accepted", "preferred", "better"),
    "rejected": ("refused", "dispreferred", "worse"),
}


class Example(NamedTuple):
    """A record in the form that all of its kind become.

    Attributes:
        form: What it was recognised as.
        text: The input alone, readable: hashed, split by and compared with others.
        example: JSON with sorted keys, as training reads it.
        answer: What must be equal, besides the input, for two examples to be the same.
        lengths: Characters of each answer; a text has none.
    """

    form: Form
    text: str
    example: str
    answer: str
    lengths: tuple[int, ...]


class Forms:
    """The forms that the rows of one reading may have.

    Args:
        task: A task for language models.
        form: The one form, or `auto`.
        named: The forms' columns that are called otherwise: `{"prompt": "question"}`.
        with_nulls: Whether null stands for what a record does not have, however deep: tables give
            every message the fields of all messages.
    """

    def __init__(self, task: Task, form: Form, named: dict[str, str], with_nulls: bool) -> None:
        self._task, self._form, self._named, self._with_nulls = task, form, named, with_nulls
        allowed = FORMS[task] if form == "auto" else (form,)
        self._allowed = tuple(each for each in _REQUIRED if each in allowed)
        self._columns = {form: self._names(_REQUIRED[form]) for form in _REQUIRED}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that may be read, each once."""
        fields = [
            name for form in self._allowed for name in _REQUIRED[form] + _OPTIONAL.get(form, ())
        ]
        return tuple(dict.fromkeys(self._names(fields)))

    def take(self, record: dict[str, Any], where: str) -> Example:
        """Recognise a record, check it, and bring it into the one form.

        Args:
            record: Values by column.
            where: File and row.

        Raises:
            BadData: It has none of the forms, or cannot be learnt from.
        """
        form = self._form_of(record) or self.check_columns(record, where)
        return _TAKE[form](_Record(record, self._named, where, self._with_nulls), self._task)

    def check_columns(self, columns: Iterable[str], where: str) -> Form:
        """The most specific form that columns have.

        Args:
            columns: Of a record, or of a whole table.
            where: File, and row if there is one.

        Raises:
            BadData: They have none.
        """
        found = list(columns)
        for form in self._allowed:
            if all(name in found for name in self._columns[form]):
                return form
        raise self._unrecognised(found, where)

    def _form_of(self, record: dict[str, Any]) -> Form | None:
        for form in self._allowed:
            if all(record.get(name) is not None for name in self._columns[form]):
                return form
        return None

    def _names(self, fields: Iterable[str]) -> tuple[str, ...]:
        return tuple(self._named.get(field, field) for field in fields)

    def _unrecognised(self, found: list[str], where: str) -> BadData:
        listed = ", ".join(repr(each) for each in found[:20]) or "none"
        expected = [f"{form}: {', '.join(self._columns[form])}" for form in self._allowed]
        other = next(
            (form for form in self._columns if all(name in found for name in self._columns[form])),
            None,
        )
        return BadData(
            where,
            f"{f'the form {other}' if other else 'no known form'} (columns: {listed})",
            f"columns that {self._task} can be trained on ({'; or '.join(expected)})",
            self._fix(other, found),
        )

    def _fix(self, other: Form | None, found: list[str]) -> str:
        named = self._guess(found)
        proposal = f"set data.columns to {{{named}}}" if named else ""
        if other and other in FORMS[self._task]:
            return f"set data.form to {other}, or to auto"
        if other:
            tasks = [task for task, forms in FORMS.items() if other in forms]
            return f"set task to {' or '.join(tasks)}" + (f", or {proposal}" if proposal else "")
        return proposal or (
            "name the columns by data.columns, such as {"
            + ", ".join(f"{name}: COLUMN" for name in _REQUIRED[self._allowed[-1]])
            + "}"
        )

    def _guess(self, found: list[str]) -> str:
        """Columns that may be meant by those of a form, as YAML; empty without a good guess."""
        for form in reversed(self._allowed):
            left, named = list(found), {}
            for field, name in zip(_REQUIRED[form], self._columns[form], strict=True):
                likely = [name, *(each for each in _ALSO_CALLED[field] if each in left)]
                near = difflib.get_close_matches(name, left, n=1, cutoff=0.6)
                column = next((each for each in [*likely, *near] if each in left), None)
                if column is None:
                    break
                left.remove(column)
                named[field] = column
            else:
                return ", ".join(f"{field}: {each}" for field, each in named.items())
        return ""


def check_settings(task: Task, form: Form, columns: dict[str, str]) -> None:
    """Refuse `data.columns` that name no column of a form.

    Raises:
        BadRecipe: A name that no form of the task has, or an empty one.
    """
    allowed = FORMS[task] if form == "auto" else (form,)
    known = sorted({name for each in allowed for name in _REQUIRED[each] + _OPTIONAL.get(each, ())})
    for name, column in columns.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise BadRecipe(
                "data.columns",
                f"{name!r}, which is no column of the forms of {task}",
                f"the names of columns in these forms: {', '.join(known) or 'none'}",
                f"write {near[0]!r}" if near else "leave it out, or set data.form",
            )
        if not column:
            raise BadRecipe(
                f"data.columns.{name}", "an empty name", "a column of the data", "name the column"
            )


def answer_of(example: dict[str, Any]) -> str:
    """The answer of an example, for people: of two, the chosen one; of a text, all of it.

    Args:
        example: As in the column `example`.
    """
    if "chosen" in example:
        return example["chosen"][-1]["content"]
    if "messages" in example:
        return example["messages"][-1]["content"] or _json(example["messages"][-1])
    return example.get("completion") or example.get("text", "")


# One record


class _Record:
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

    def __init__(self, record: _Record, turn: Any, number: int, column: str) -> None:
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


# Forms


def _take_text(record: _Record, task: Task) -> Example:
    text = record.text("text")
    # The whole text is the input: nothing else can differ.
    return Example("text", text, _json({"text": text}), "", ())


def _take_pair(record: _Record, task: Task) -> Example:
    prompt, completion = record.text("prompt"), record.text("completion")
    if task == "instruction":
        return _chat("prompt-completion", _asked(prompt, completion))
    example = _json({"prompt": prompt, "completion": completion})
    return Example("prompt-completion", prompt, example, completion, (len(completion),))


def _take_alpaca(record: _Record, task: Task) -> Example:
    asked, more = record.text("instruction"), record.optional_text("input")
    turns = _asked(f"{asked}\n\n{more}" if more else asked, record.text("output"))
    return _chat("alpaca", record.system() + turns)


def _take_messages(record: _Record, task: Task) -> Example:
    messages = record.turns("messages")
    record.check_order(messages, "messages")
    return _chat("messages", messages, record.tools())


def _take_sharegpt(record: _Record, task: Task) -> Example:
    messages = record.turns("conversations")
    if messages[0]["role"] != "system":
        messages = record.system() + messages
    record.check_order(messages, "conversations")
    return _chat("sharegpt", messages, record.tools())


def _take_preference(record: _Record, task: Task) -> Example:
    given = []
    if record.value("prompt") is not None:
        given = record.turns_or_text("prompt", "user")
    sides = {field: record.turns_or_text(field, "assistant") for field in ("chosen", "rejected")}
    if sides["chosen"] == sides["rejected"]:
        record.bad(
            f"the same in {record.name('chosen')!r} and {record.name('rejected')!r}",
            "two different answers",
            "remove the row",
        )
    for field, turns in sides.items():
        # An answer alone goes after the prompt; a conversation has it.
        if turns[0]["role"] == "assistant":
            sides[field] = given + turns
            if not given:
                record.bad(
                    f"no prompt to the answer in {record.name(field)!r}",
                    f"a text or messages in {record.name('prompt')!r}, or whole conversations",
                    "fill in or remove the row, or name the column as data.columns.prompt",
                )
        record.check_order(sides[field], field)
    shared = _shared(sides["chosen"], sides["rejected"])
    prompt = sides["chosen"][:shared]
    if not shared or not all(turn in prompt for turn in given):
        record.bad(
            f"different conversations in {record.name('chosen')!r} and {record.name('rejected')!r}",
            "two answers to one prompt" + (f", that in {record.name('prompt')!r}" if given else ""),
            "remove the row",
        )
    answers = [turns[shared:] for turns in sides.values()]
    example = _json({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    lengths = tuple(sum(len(turn["content"]) for turn in each) for each in answers)
    return Example("preference", _rendered(prompt), example, _json(answers), lengths)


_TAKE: dict[str, Callable[[_Record, Task], Example]] = {
    "text": _take_text,
    "prompt-completion": _take_pair,
    "alpaca": _take_alpaca,
    "messages": _take_messages,
    "sharegpt": _take_sharegpt,
    "preference": _take_preference,
}


def _asked(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _chat(
    form: Form, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> Example:
    example: dict[str, Any] = {"messages": messages}
    text = _rendered(messages[:-1])
    if tools:
        example["tools"] = tools
        # Their names alone: whole schemas would make all questions look alike.
        text = f"tools: {', '.join(map(_tool_name, tools))}\n{text}"
    answer = _json([messages[-1], tools or []])
    return Example(form, text, _json(example), answer, (len(messages[-1]["content"]),))


def _tool_name(tool: dict[str, Any]) -> str:
    inner = tool.get("function", tool)
    return str(inner.get("name", "")) if isinstance(inner, dict) else ""


def _rendered(messages: list[dict[str, Any]]) -> str:
    """Turns for people, one a line: the content, and the tools that are called."""
    return "\n".join(
        f"{turn['role']}: {turn['content']}"
        + (_json(turn["tool_calls"]) if "tool_calls" in turn else "")
        for turn in messages
    )


def _shared(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> int:
    """How many turns two conversations begin with alike, so that both go on with an answer."""
    count = 0
    while count < min(len(one), len(other)) - 1 and one[count] == other[count]:
        count += 1
    while count and not (one[count]["role"] == other[count]["role"] == "assistant"):
        count -= 1
    return count


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


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _turns(count: int) -> str:
    return f"{count} turn{'s' if count > 1 else ''}"


def kind(value: Any) -> str:
    """What a JSON value is, for messages."""
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number"}
    if value is None:
        return "nothing"
    return names.get(type(value), "a number" if isinstance(value, float) else type(value).__name__)
