"""Conversations: roles, tool calls, reasoning, and the order of turns."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from tasks.contracts.errors import BadData
from tests.tasks.samples import CALL, TOOL, WEATHER, chat, parse_row, turns


class TestMessages:
    def test_the_input_is_everything_before_the_last_answer(self):
        found = parse_row(
            chat("system|Be kind", "user|Hi", "assistant|Hello", "user|Bye", "assistant|Bye!")
        )
        assert found.text == "system: Be kind\nuser: Hi\nassistant: Hello\nuser: Bye"
        assert found.lengths == (4,)

    def test_fields_are_sorted_and_unknown_fields_dropped(self):
        row = {"messages": [{"content": "a", "role": "user", "id": 5}, *turns("x", "b")[1:]]}
        assert parse_row({**row, "score": 1}).example == (
            '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}'
        )

    def test_a_conversation_as_json(self):
        row = chat("a", "b")
        assert parse_row({"messages": json.dumps(row["messages"])}) == parse_row(row)

    def test_text_parts_are_joined(self):
        parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
        row = {"messages": [{"role": "user", "content": parts}, *turns("x", "c")[1:]]}
        assert parse_row(row) == parse_row(chat("a b", "c"))

    def test_tool_calls_in_every_spelling(self):
        def row(call, **more):
            said = {"role": "assistant", "content": None, "tool_calls": call, **more}
            return {
                "messages": [*turns("Weather?"), said, *turns("tool|7 degrees", "Cold.")],
                "tools": [TOOL],
            }

        found = parse_row(row([CALL]))
        assert json.loads(found.example) == {
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "7 degrees"},
                {"role": "assistant", "content": "Cold."},
            ],
            "tools": [TOOL],
        }
        assert found.text.splitlines()[:2] == ["tools: weather", "user: Weather?"]
        as_text = {"function": {**WEATHER, "arguments": '{"city": "Oslo"}'}}
        sharegpt = {
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": json.dumps(WEATHER)},
                {"from": "observation", "value": "7 degrees"},
                {"from": "gpt", "value": "Cold."},
            ],
            "tools": json.dumps([TOOL]),
        }
        for same in (row([as_text]), row([WEATHER]), row(json.dumps([CALL])), sharegpt):
            assert parse_row(same)[1:] == found[1:]

    def test_keys_of_tools_and_arguments_keep_their_order_but_do_not_tell_rows_apart(self):
        arguments = {"reason": "asked for", "hour": 8, "id": 18446744073709551617}
        tool = {"type": "function", "function": {"name": "book", "description": "Book a room."}}

        def row(arguments):
            call = {"function": {"name": "book", "arguments": arguments}}
            said = {"role": "assistant", "content": "", "tool_calls": [call]}
            return parse_row({"messages": [*turns("Book."), said], "tools": [tool]})

        found = row(arguments)
        assert '{"reason":"asked for","hour":8,"id":18446744073709551617}' in found.example
        assert '"function":{"name":"book","description"' in found.example
        other = row(dict(reversed(arguments.items())))
        assert other.example != found.example
        assert (other.text, other.answer) == (found.text, found.answer)

    def test_different_tools_make_different_examples(self):
        one, other = parse_row(chat("a", "b", tools=[TOOL])), parse_row(chat("a", "b"))
        assert one.answer != other.answer

    def test_names_and_tool_call_ids_are_kept(self):
        said = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "c1"}]}
        tool = {"role": "tool", "content": "", "name": "weather", "tool_call_id": "c1"}
        found = parse_row({"messages": [*turns("a"), said, tool, *turns("x", "b")[1:]]})
        assert json.loads(found.example)["messages"][1:3] == [said, tool]

    def test_reasoning_is_kept_for_the_assistant_only(self):
        said = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
        question = {"role": "user", "content": "a", "reasoning_content": "hm"}
        found = parse_row({"messages": [question, said]})
        assert json.loads(found.example)["messages"] == [*turns("a"), said]
        assert found.text == parse_row(chat("a", "b")).text
        assert found.answer != parse_row(chat("a", "b")).answer

    def test_nulls_in_tables_count_as_absent(self):
        said = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "c1"}]}
        tool = {"role": "tool", "content": "7", "tool_call_id": "c1"}
        row = {"messages": [*turns("a"), said, tool, *turns("x", "b")[1:]], "tools": [TOOL]}
        [wide] = pa.Table.from_pylist([row]).to_pylist()
        assert wide["messages"][0]["tool_calls"] is None
        assert parse_row(wide, drop_nulls=True) == parse_row(row)


PART = {"type": "image_url", "image_url": {"url": "x"}}


# name, record, part of the message
BAD = [
    (
        "no assistant turn",
        chat("a"),
        "no assistant turn in 'messages' (1 turn); expected an assistant turn, for the model to ",
    ),
    (
        "an empty conversation",
        {"messages": []},
        "an empty list in 'messages'; expected a list of messages",
    ),
    (
        "a user turn at the end",
        chat("a", "b", "c"),
        "a conversation of 3 turns in 'messages' that ends with a user turn; expected an assistant "
        "turn at the end, for the model to learn. Fix: remove the last turn",
    ),
    (
        "an empty turn",
        chat("a", " \n"),
        "no content in turn 2 of 'messages'; expected a non-empty text",
    ),
    (
        "a turn without content",
        {"conversations": [{"from": "human"}, {"from": "gpt", "value": "b"}]},
        "no content in turn 1 of 'conversations'",
    ),
    (
        "an unknown role",
        chat("a", "asistant|b"),
        "the unknown role 'asistant' in turn 2 of 'messages'; expected one of system, user, human",
    ),
    ("no role", {"messages": [{"content": "a"}]}, "no role in turn 1"),
    (
        "a turn that is a text",
        {"messages": ["a", "b"]},
        "a string in turn 1 of 'messages'; expected role and content",
    ),
    (
        "two turns of one role",
        chat("a", "user|b", "assistant|c"),
        "a user turn after a user turn in 'messages' (turn 2 of 3); expected an assistant turn: "
        "user and assistant alternate. Fix: merge the two turns",
    ),
    (
        "an answer before any question",
        {"conversations": [{"from": "gpt", "value": "a"}]},
        "an assistant turn at the beginning in 'conversations' (turn 1 of 1); expected a system or "
        "user turn",
    ),
    (
        "an answer to the system",
        chat("system|a", "b"),
        "an assistant turn after a system turn in 'messages' (turn 2 of 2); expected a user turn",
    ),
    (
        "a system turn in the middle",
        chat("a", "b", "system|c", "user|d", "assistant|e"),
        "expected a system turn only at the beginning",
    ),
    (
        "a tool turn without a tool call",
        chat("a", "tool|b", "assistant|c"),
        "a tool turn after a user turn in 'messages' (turn 2 of 3); expected a tool turn only "
        "after an assistant turn with tool calls",
    ),
    (
        "a tool turn at the end",
        {
            "messages": [
                *turns("a"),
                {"role": "assistant", "tool_calls": [WEATHER]},
                *turns("tool|b"),
            ]
        },
        "that ends with a tool turn",
    ),
    (
        "an invalid tool call",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": "x"},
            ]
        },
        "an invalid tool call in turn 2 of 'conversations'",
    ),
    (
        "invalid tools",
        chat("a", "b", tools="weather"),
        "invalid tools in 'tools'",
    ),
    (
        "an image",
        {"messages": [{"role": "user", "content": [PART]}, *turns("x", "b")[1:]]},
        "a part of type 'image_url' in turn 1 of 'messages'; expected parts of type 'text'",
    ),
    (
        "content that is a number",
        {"messages": [{"role": "user", "content": 5}]},
        "a number as content in turn 1 of 'messages'",
    ),
    (
        "messages as a Python repr",
        {"messages": str(turns("a", "b"))},
        "invalid JSON in 'messages'",
    ),
    (
        "messages that are an object",
        {"messages": {"role": "user"}},
        "an object in 'messages'; expected a list of messages",
    ),
]


class TestBadConversations:
    @pytest.mark.parametrize(
        ("record", "message"),
        [case[1:] for case in BAD],
        ids=[case[0] for case in BAD],
    )
    def test_a_bad_conversation_is_refused(self, record, message):
        with pytest.raises(BadData) as error:
            parse_row(record)
        assert str(error.value).startswith("a.jsonl:7: found ")
        assert message in str(error.value)
