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
from typing import Any, NamedTuple

import orjson

from tasks.contracts.errors import BadData, BadRecipe
from tasks.contracts.recipe_data import ROW_FORMATS, RowFormat, Task
from tasks.load.chat_rows import Record

CLASSES: Task = "text-classification"
"""The one task whose rows have no form: a text and its label."""

# The most specific first.
_REQUIRED: dict[RowFormat, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
_OPTIONAL: dict[RowFormat, tuple[str, ...]] = {
    "preference": ("prompt",),
    "messages": ("tools",),
    "sharegpt": ("system", "tools"),
    "alpaca": ("input", "system"),
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
        row_format: What it was recognised as.
        text: The input alone, readable: hashed, split by and compared with others.
        example: JSON with sorted keys, as training reads it.
        answer: What must be equal, besides the input, for two examples to be the same.
        lengths: Characters of each answer; a text has none.
    """

    row_format: RowFormat
    text: str
    example: str
    answer: str
    lengths: tuple[int, ...]


class RowFormats:
    """The forms that the rows of one reading may have.

    Args:
        task: A task for language models.
        row_format: The one form, or `auto`.
        named: The forms' columns that are called otherwise: `{"prompt": "question"}`.
        with_nulls: Whether null stands for what a record does not have, however deep: tables give
            every message the fields of all messages.
    """

    def __init__(
        self, task: Task, form: RowFormat, named: dict[str, str], with_nulls: bool
    ) -> None:
        self._task, self._form, self._named, self._with_nulls = task, form, named, with_nulls
        allowed = ROW_FORMATS[task] if form == "auto" else (form,)
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
        return _TAKE[form](Record(record, self._named, where, self._with_nulls), self._task)

    def check_columns(self, columns: Iterable[str], where: str) -> RowFormat:
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

    def _form_of(self, record: dict[str, Any]) -> RowFormat | None:
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

    def _fix(self, other: RowFormat | None, found: list[str]) -> str:
        named = self._guess(found)
        proposal = f"set data.columns to {{{named}}}" if named else ""
        if other and other in ROW_FORMATS[self._task]:
            return f"set data.row_format to {other}, or to auto"
        if other:
            tasks = [task for task, forms in ROW_FORMATS.items() if other in forms]
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


def check_settings(task: Task, form: RowFormat, columns: dict[str, str]) -> None:
    """Refuse `data.columns` that name no column of a form.

    Raises:
        BadRecipe: A name that no form of the task has, or an empty one.
    """
    allowed = ROW_FORMATS[task] if form == "auto" else (form,)
    known = sorted({name for each in allowed for name in _REQUIRED[each] + _OPTIONAL.get(each, ())})
    for name, column in columns.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise BadRecipe(
                "data.columns",
                f"{name!r}, which is no column of the forms of {task}",
                f"the names of columns in these forms: {', '.join(known) or 'none'}",
                f"write {near[0]!r}" if near else "leave it out, or set data.row_format",
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


# Forms


def _take_text(record: Record, task: Task) -> Example:
    text = record.text("text")
    # The whole text is the input: nothing else can differ.
    return Example("text", text, _json({"text": text}), "", ())


def _take_pair(record: Record, task: Task) -> Example:
    prompt, completion = record.text("prompt"), record.text("completion")
    if task == "instruction":
        return _chat("prompt-completion", _asked(prompt, completion))
    example = _json({"prompt": prompt, "completion": completion})
    return Example("prompt-completion", prompt, example, completion, (len(completion),))


def _take_alpaca(record: Record, task: Task) -> Example:
    asked, more = record.text("instruction"), record.optional_text("input")
    turns = _asked(f"{asked}\n\n{more}" if more else asked, record.text("output"))
    return _chat("alpaca", record.system() + turns)


def _take_messages(record: Record, task: Task) -> Example:
    messages = record.turns("messages")
    record.check_order(messages, "messages")
    return _chat("messages", messages, record.tools())


def _take_sharegpt(record: Record, task: Task) -> Example:
    messages = record.turns("conversations")
    if messages[0]["role"] != "system":
        messages = record.system() + messages
    record.check_order(messages, "conversations")
    return _chat("sharegpt", messages, record.tools())


def _take_preference(record: Record, task: Task) -> Example:
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


_TAKE: dict[str, Callable[[Record, Task], Example]] = {
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
    form: RowFormat, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
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


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
