"""The row formats of language-model data, and the common form that rows of all formats become.

A record's format is recognised by its columns. If several formats fit, the most specific one that
the task can be trained on wins: preference, messages, sharegpt, alpaca, prompt-completion, text.
A null counts as an absent column, so one table may hold several formats.

| row format        | columns (`?`: optional)        | becomes                                     |
|-------------------|--------------------------------|---------------------------------------------|
| text              | text                           | a text, trained on from start to end        |
| prompt-completion | prompt, completion             | a prompt and its completion; for the task   |
|                   |                                | instruction, a user and an assistant turn   |
| alpaca            | instruction, input?, output,   | a user turn (instruction, empty line,       |
|                   | system?                        | input) and an assistant turn                |
| messages          | messages, tools?               | a chat, from messages of role and content   |
| sharegpt          | conversations, system?, tools? | a chat, from messages of from and value     |
| preference        | prompt?, chosen, rejected      | a prompt and two answers; without a prompt  |
|                   |                                | column, the prompt is what both share       |

Messages keep `role`, `content`, `tool_calls`, `name`, `tool_call_id` and, for the assistant,
`reasoning_content`; other fields are dropped.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tasks.contracts.errors import BadData, BadRecipe
from tasks.contracts.recipe_data import RowFormat, Task
from tasks.contracts.task_tables import ROW_FORMATS
from tasks.load.chat_rows import Record
from tasks.load.json_values import content_json, identity_json

CLASSIFICATION: Task = "text-classification"
"""The one task without row formats: each row is a text and its label."""

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
# Names that other data sets use for these columns. They are suggested, never assumed.
_SYNONYMS = {
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
    """A parsed record, in the form that training reads.

    Attributes:
        row_format: The format that was recognised.
        text: The input as readable text: what is hashed, split by and compared.
        example: JSON as training reads it: keys in the order of the data.
        answer: The output. Two examples are duplicates if input and answer are equal.
        lengths: Length of each answer in characters; empty for a plain text.
    """

    row_format: RowFormat
    text: str
    example: str
    answer: str
    lengths: tuple[int, ...]


class RowFormats:
    """Recognises and parses the rows of a data set for language models.

    Args:
        task: A task for language models.
        row_format: The only format to accept, or `auto`.
        column_names: The data's column for each field, where the names differ, such as
            `{"prompt": "question"}`.
        drop_nulls: Whether null fields inside nested values count as absent. Columnar files give
            every message the fields of all messages.
    """

    def __init__(
        self, task: Task, row_format: RowFormat, column_names: dict[str, str], drop_nulls: bool
    ) -> None:
        self._task, self._column_names, self._drop_nulls = task, column_names, drop_nulls
        allowed = ROW_FORMATS[task] if row_format == "auto" else (row_format,)
        self._allowed = tuple(each for each in _REQUIRED if each in allowed)
        self._columns = {each: self._names(_REQUIRED[each]) for each in _REQUIRED}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that any accepted format reads, each once."""
        fields = [
            name for each in self._allowed for name in _REQUIRED[each] + _OPTIONAL.get(each, ())
        ]
        return tuple(dict.fromkeys(self._names(fields)))

    def parse(self, record: dict[str, Any], where: str) -> Example:
        """Recognise, check and parse a record.

        Args:
            record: Values by column.
            where: File and row.

        Raises:
            BadData: It has none of the accepted formats, or cannot be trained on.
        """
        row_format = self._recognise(record) or self.check_columns(record, where)
        parse = _PARSERS[row_format]
        return parse(Record(record, self._column_names, where, self._drop_nulls), self._task)

    def check_columns(self, columns: Iterable[str], where: str) -> RowFormat:
        """Return the most specific row format whose columns are all there.

        Args:
            columns: The columns of a record or a table.
            where: File, and row if there is one.

        Raises:
            BadData: No accepted format fits.
        """
        found = list(columns)
        for row_format in self._allowed:
            if all(name in found for name in self._columns[row_format]):
                return row_format
        raise self._unrecognised(found, where)

    def _recognise(self, record: dict[str, Any]) -> RowFormat | None:
        for row_format in self._allowed:
            if all(record.get(name) is not None for name in self._columns[row_format]):
                return row_format
        return None

    def _names(self, fields: Iterable[str]) -> tuple[str, ...]:
        return tuple(self._column_names.get(field, field) for field in fields)

    def _unrecognised(self, found: list[str], where: str) -> BadData:
        listed = ", ".join(repr(each) for each in found[:20]) or "none"
        expected = [f"{each}: {', '.join(self._columns[each])}" for each in self._allowed]
        other = next(
            (each for each, names in self._columns.items() if all(name in found for name in names)),
            None,
        )
        return BadData(
            where,
            f"{f'the row format {other}' if other else 'no known row format'} (columns: {listed})",
            f"columns for the task {self._task} ({'; or '.join(expected)})",
            self._fix(other, found),
        )

    def _fix(self, other: RowFormat | None, found: list[str]) -> str:
        guess = self._guess_columns(found)
        proposal = f"set data.columns to {{{guess}}}" if guess else ""
        if other and other in ROW_FORMATS[self._task]:
            return f"set data.row_format to {other}, or to auto"
        if other:
            tasks = [task for task, formats in ROW_FORMATS.items() if other in formats]
            return f"set task to {' or '.join(tasks)}" + (f", or {proposal}" if proposal else "")
        return proposal or (
            "name the columns in data.columns, such as {"
            + ", ".join(f"{name}: COLUMN" for name in _REQUIRED[self._allowed[-1]])
            + "}"
        )

    def _guess_columns(self, found: list[str]) -> str:
        """Return a guess at `data.columns` as YAML; empty if there is no good one."""
        for row_format in reversed(self._allowed):
            left, guess = list(found), {}
            for field, name in zip(_REQUIRED[row_format], self._columns[row_format], strict=True):
                likely = [name, *(each for each in _SYNONYMS[field] if each in left)]
                near = difflib.get_close_matches(name, left, n=1, cutoff=0.6)
                column = next((each for each in [*likely, *near] if each in left), None)
                if column is None:
                    break
                left.remove(column)
                guess[field] = column
            else:
                return ", ".join(f"{field}: {each}" for field, each in guess.items())
        return ""


def check_settings(task: Task, row_format: RowFormat, columns: dict[str, str]) -> None:
    """Check `data.columns`.

    Raises:
        BadRecipe: It has a key that no row format of the task has, or an empty column name.
    """
    allowed = ROW_FORMATS[task] if row_format == "auto" else (row_format,)
    known = sorted({name for each in allowed for name in _REQUIRED[each] + _OPTIONAL.get(each, ())})
    for name, column in columns.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise BadRecipe(
                "data.columns",
                f"{name!r}, which no row format of the task {task} has",
                f"names of its row formats' columns: {', '.join(known) or 'none'}",
                f"write {near[0]!r}" if near else "leave it out, or set data.row_format",
            )
        if not column:
            raise BadRecipe(
                f"data.columns.{name}", "an empty name", "a column of the data", "name the column"
            )


def answer_of(example: dict[str, Any]) -> str:
    """Return an example's answer for display: the chosen one of a pair, all of a plain text.

    Args:
        example: The parsed `example` column.
    """
    if "chosen" in example:
        return example["chosen"][-1]["content"]
    if "messages" in example:
        return example["messages"][-1]["content"] or identity_json(example["messages"][-1])
    return example.get("completion") or example.get("text", "")


def _parse_text(record: Record, task: Task) -> Example:
    text = record.text("text")
    # The whole text is the input, so there is no separate answer.
    return Example("text", text, content_json({"text": text}), "", ())


def _parse_prompt_completion(record: Record, task: Task) -> Example:
    prompt, completion = record.text("prompt"), record.text("completion")
    if task == "instruction":
        return _chat("prompt-completion", _exchange(prompt, completion))
    example = content_json({"prompt": prompt, "completion": completion})
    return Example("prompt-completion", prompt, example, completion, (len(completion),))


def _parse_alpaca(record: Record, task: Task) -> Example:
    instruction, more = record.text("instruction"), record.optional_text("input")
    question = f"{instruction}\n\n{more}" if more else instruction
    return _chat("alpaca", record.system() + _exchange(question, record.text("output")))


def _parse_messages(record: Record, task: Task) -> Example:
    messages = record.messages("messages")
    record.check_turn_order(messages, "messages")
    return _chat("messages", messages, record.tools())


def _parse_sharegpt(record: Record, task: Task) -> Example:
    messages = record.messages("conversations")
    if messages[0]["role"] != "system":
        messages = record.system() + messages
    record.check_turn_order(messages, "conversations")
    return _chat("sharegpt", messages, record.tools())


def _parse_preference(record: Record, task: Task) -> Example:
    given = []
    if record.value("prompt") is not None:
        given = record.messages_or_text("prompt", "user")
    chosen = record.messages_or_text("chosen", "assistant")
    rejected = record.messages_or_text("rejected", "assistant")
    if chosen == rejected:
        record.bad(
            f"equal answers in {record.column('chosen')!r} and {record.column('rejected')!r}",
            "two different answers",
            "remove the row",
        )
    chosen = _whole_conversation(record, given, chosen, "chosen")
    rejected = _whole_conversation(record, given, rejected, "rejected")
    shared = _shared_length(chosen, rejected)
    prompt = chosen[:shared]
    if not shared or not all(message in prompt for message in given):
        source = f", the one in {record.column('prompt')!r}" if given else ""
        record.bad(
            f"different prompts in {record.column('chosen')!r} and {record.column('rejected')!r}",
            f"two answers to one prompt{source}",
            "remove the row",
        )
    answers = [chosen[shared:], rejected[shared:]]
    example = content_json({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    lengths = tuple(sum(len(message["content"]) for message in each) for each in answers)
    return Example("preference", _rendered(prompt), example, identity_json(answers), lengths)


def _whole_conversation(
    record: Record, prompt: list[dict[str, Any]], messages: list[dict[str, Any]], field: str
) -> list[dict[str, Any]]:
    """Return one side of a preference with its prompt; a whole conversation contains it already."""
    if messages[0]["role"] == "assistant":
        if not prompt:
            record.bad(
                f"no prompt for the answer in {record.column(field)!r}",
                f"a text or messages in {record.column('prompt')!r}, or whole conversations",
                "fill in or remove the row, or set data.columns.prompt to its column",
            )
        messages = prompt + messages
    record.check_turn_order(messages, field)
    return messages


_PARSERS: dict[str, Callable[[Record, Task], Example]] = {
    "text": _parse_text,
    "prompt-completion": _parse_prompt_completion,
    "alpaca": _parse_alpaca,
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "preference": _parse_preference,
}


def _exchange(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _chat(
    row_format: RowFormat, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> Example:
    example: dict[str, Any] = {"messages": messages}
    text = _rendered(messages[:-1])
    if tools:
        example["tools"] = tools
        # Only their names: whole schemas would make all inputs look like near-duplicates.
        text = f"tools: {', '.join(map(_tool_name, tools))}\n{text}"
    answer = identity_json([messages[-1], tools or []])
    return Example(row_format, text, content_json(example), answer, (len(messages[-1]["content"]),))


def _tool_name(tool: dict[str, Any]) -> str:
    inner = tool.get("function", tool)
    return str(inner.get("name", "")) if isinstance(inner, dict) else ""


def _rendered(messages: list[dict[str, Any]]) -> str:
    """Return messages as readable text, one per line, with tool calls."""
    return "\n".join(
        f"{turn['role']}: {turn['content']}"
        + (identity_json(turn["tool_calls"]) if "tool_calls" in turn else "")
        for turn in messages
    )


def _shared_length(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> int:
    """Return the number of leading turns that two conversations share before an answer of each."""
    count = 0
    while count < min(len(one), len(other)) - 1 and one[count] == other[count]:
        count += 1
    while count and not (one[count]["role"] == other[count]["role"] == "assistant"):
        count -= 1
    return count
