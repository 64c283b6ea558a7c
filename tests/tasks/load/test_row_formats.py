"""The forms of language-model data: what they become, and what is refused."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.contracts.errors import BadData, BadRecipe
from tasks.contracts.recipe_data import ROW_FORMATS, DataRecipe
from tasks.load.read_settings import Reading
from tasks.load.read_tables import check_table
from tasks.load.row_formats import RowFormats, answer_of, check_settings
from tasks.load.splits import input_hash, normal_form

FAQ = Path(importlib.util.find_spec("zaragoza_construction_faq").submodule_search_locations[0])
FAQ_COLUMNS = {"prompt": "q", "completion": "a"}


def faq(name: str) -> list[dict[str, Any]]:
    """Rows of the frequently asked questions, in one of their forms."""
    path = FAQ / "data" / name
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


def taken(record, task="instruction", form="auto", named=None, with_nulls=False):
    """What a record becomes."""
    return RowFormats(task, form, named or {}, with_nulls).take(record, "a.jsonl:7")


def chat(*contents: str, **more: Any) -> dict[str, Any]:
    """A conversation of user and assistant by turns; a content may begin with its own role."""
    turns = []
    for number, content in enumerate(contents):
        role, mark, rest = content.partition("|")
        usual = ("user", "assistant")[number % 2]
        turns.append({"role": role if mark else usual, "content": rest if mark else content})
    return {"messages": turns, **more}


def turns(*contents: str) -> list[dict[str, Any]]:
    return chat(*contents)["messages"]


WEATHER = {"name": "weather", "arguments": {"city": "Oslo"}}
CALL = {"type": "function", "function": WEATHER}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


class TestForms:
    def test_the_questions_are_the_same_in_every_form(self):
        rows = {
            "alpaca": [taken(row) for row in faq("faq-en-alpaca.jsonl")],
            "sharegpt": [taken(row) for row in faq("faq-en-sharegpt.jsonl")],
            "csv": [taken(row, named=FAQ_COLUMNS) for row in faq("faq-en.csv")],
            "jsonl": [taken(row, named=FAQ_COLUMNS) for row in faq("faq-en.jsonl")],
        }
        assert {form: {each.row_format for each in found} for form, found in rows.items()} == {
            "alpaca": {"alpaca"},
            "sharegpt": {"sharegpt"},
            "csv": {"prompt-completion"},
            "jsonl": {"prompt-completion"},
        }
        first, *others = ([each[1:] for each in found] for found in rows.values())
        assert len(first) == 503
        assert all(other == first for other in others)

    def test_text(self):
        found = taken({"text": "All of it. "}, "completion")
        assert found == ("text", "All of it. ", '{"text":"All of it. "}', "", ())

    def test_prompt_and_completion_to_go_on_with(self):
        row = faq("faq-en.jsonl")[0]
        found = taken(row, "completion", named=FAQ_COLUMNS)
        assert found.text == row["q"]
        assert json.loads(found.example) == {"prompt": row["q"], "completion": row["a"]}
        assert found.lengths == (len(row["a"]),)

    def test_alpaca_with_an_input_and_a_system_prompt(self):
        found = taken({"instruction": "Sum", "input": "1 2", "output": "3", "system": "Be brief"})
        assert json.loads(found.example)["messages"] == [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "Sum\n\n1 2"},
            {"role": "assistant", "content": "3"},
        ]

    def test_the_input_is_all_before_the_last_answer(self):
        found = taken(
            chat("system|Be kind", "user|Hi", "assistant|Hello", "user|Bye", "assistant|Bye!")
        )
        assert found.text == "system: Be kind\nuser: Hi\nassistant: Hello\nuser: Bye"
        assert found.lengths == (4,)

    def test_fields_are_sorted_and_others_left_out(self):
        row = {"messages": [{"content": "a", "role": "user", "id": 5}, *turns("x", "b")[1:]]}
        assert taken({**row, "score": 1}).example == (
            '{"messages":[{"content":"a","role":"user"},{"content":"b","role":"assistant"}]}'
        )

    def test_a_conversation_as_json(self):
        row = chat("a", "b")
        assert taken({"messages": json.dumps(row["messages"])}) == taken(row)

    def test_text_parts_are_joined(self):
        parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
        row = {"messages": [{"role": "user", "content": parts}, *turns("x", "c")[1:]]}
        assert taken(row) == taken(chat("a b", "c"))

    def test_tool_calls_in_every_spelling(self):
        def row(call, **more):
            said = {"role": "assistant", "content": None, "tool_calls": call, **more}
            return {
                "messages": [*turns("Weather?"), said, *turns("tool|7 degrees", "Cold.")],
                "tools": [TOOL],
            }

        found = taken(row([CALL]))
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
            assert taken(same)[1:] == found[1:]

    def test_tools_that_differ_are_different_examples(self):
        one, other = taken(chat("a", "b", tools=[TOOL])), taken(chat("a", "b"))
        assert one.answer != other.answer

    def test_names_and_call_numbers_stay(self):
        said = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "c1"}]}
        tool = {"role": "tool", "content": "", "name": "weather", "tool_call_id": "c1"}
        found = taken({"messages": [*turns("a"), said, tool, *turns("x", "b")[1:]]})
        assert json.loads(found.example)["messages"][1:3] == [said, tool]

    def test_thoughts_stay_with_the_assistant(self):
        said = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
        asked = {"role": "user", "content": "a", "reasoning_content": "hm"}
        found = taken({"messages": [asked, said]})
        assert json.loads(found.example)["messages"] == [*turns("a"), said]
        assert found.text == taken(chat("a", "b")).text
        assert found.answer != taken(chat("a", "b")).answer

    def test_nulls_of_tables_mean_nothing(self):
        said = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "c1"}]}
        tool = {"role": "tool", "content": "7", "tool_call_id": "c1"}
        row = {"messages": [*turns("a"), said, tool, *turns("x", "b")[1:]], "tools": [TOOL]}
        [wide] = pa.Table.from_pylist([row]).to_pylist()
        assert wide["messages"][0]["tool_calls"] is None
        assert taken(wide, with_nulls=True) == taken(row)


PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
WHOLE = {
    "prompt": turns("Why?"),
    "chosen": turns("assistant|Because."),
    "rejected": turns("assistant|No."),
}


class TestPreference:
    def test_texts(self):
        found = taken(PAIR, "preference")
        assert found.text == "user: Why?"
        assert json.loads(found.example) == WHOLE
        assert found.lengths == (8, 3)

    @pytest.mark.parametrize(
        "row",
        [
            WHOLE,
            {**WHOLE, "prompt": "Why?"},
            {"chosen": turns("Why?", "Because."), "rejected": turns("Why?", "No.")},
            {**PAIR, "chosen": turns("Why?", "Because."), "rejected": turns("Why?", "No.")},
            {**PAIR, "prompt": turns("Why?"), "chosen": turns("Why?", "Because.")},
            {name: json.dumps(value) for name, value in WHOLE.items()},
            {"prompt": None, "chosen": turns("Why?", "Because."), "rejected": turns("Why?", "No.")},
        ],
    )
    def test_the_same_pair_otherwise(self, row):
        assert taken(row, "preference") == taken(PAIR, "preference")

    def test_what_is_shared_is_the_prompt(self):
        row = {
            "prompt": "q1",
            "chosen": turns("system|s", "user|q1", "assistant|a1", "user|q2", "assistant|good"),
            "rejected": turns("system|s", "user|q1", "assistant|a1", "user|q2", "assistant|bad"),
        }
        example = json.loads(taken(row, "preference").example)
        assert example["prompt"] == row["chosen"][:4]
        assert example["chosen"] == [{"role": "assistant", "content": "good"}]

    def test_conversations_of_several_answers(self):
        row = {"chosen": turns("q1", "a", "q2", "b"), "rejected": turns("q1", "a", "other", "c")}
        example = json.loads(taken(row, "preference").example)
        # Each side begins with an answer, even where that is shared.
        assert example["prompt"] == turns("q1")
        assert [turn["content"] for turn in example["rejected"]] == ["a", "other", "c"]

    def test_an_answer_that_looks_like_json_stays_text(self):
        row = {**PAIR, "chosen": "[1, 2]", "rejected": '["a"]'}
        example = json.loads(taken(row, "preference").example)
        assert example["rejected"] == [{"role": "assistant", "content": '["a"]'}]


EVERY = {
    "text": "t",
    "prompt": "p",
    "completion": "c",
    "instruction": "i",
    "output": "o",
    "conversations": turns("a", "b"),
    "messages": turns("a", "b"),
    "chosen": "x",
    "rejected": "y",
}


class TestRecognition:
    @pytest.mark.parametrize(
        ("task", "order"),
        [
            ("preference", ["preference"]),
            ("instruction", ["messages", "sharegpt", "alpaca", "prompt-completion"]),
            ("completion", ["prompt-completion", "text"]),
        ],
    )
    def test_the_most_specific_form_wins(self, task, order):
        columns = {
            "messages": "messages",
            "sharegpt": "conversations",
            "alpaca": "output",
            "prompt-completion": "completion",
        }
        row = dict(EVERY)
        for form in order:
            assert taken(row, task).row_format == form
            assert taken(EVERY, task, form).row_format == form
            # A null is as good as none.
            row[columns.get(form, "text")] = None

    def test_every_form_of_every_task_is_known(self):
        for task, forms in ROW_FORMATS.items():
            for form in forms:
                assert taken(EVERY, task, form).row_format == form

    def test_columns_by_another_name(self):
        row = {"frage": "a", "antwort": "b", "prompt": 5}
        named = {"prompt": "frage", "completion": "antwort"}
        assert taken(row, named=named)[1:] == taken(chat("a", "b"))[1:]

    def test_which_columns_are_read(self):
        assert RowFormats("completion", "auto", {"text": "body"}, False).columns == (
            "prompt",
            "completion",
            "body",
        )
        assert RowFormats("preference", "auto", {}, True).columns == (
            "chosen",
            "rejected",
            "prompt",
        )

    def test_answers_for_people(self):
        assert answer_of({"text": "a"}) == "a"
        assert answer_of({"prompt": "a", "completion": "b"}) == "b"
        assert answer_of(chat("a", "b")) == "b"
        assert answer_of({"chosen": turns("a", "b"), "rejected": []}) == "b"


contents = st.text(min_size=1, max_size=40).filter(
    lambda text: text.strip() and text.encode("utf-8", "ignore").decode() == text
)


class TestRenderings:
    @given(contents, contents)
    def test_forms_of_one_pair_are_one_example(self, question, answer):
        same = [
            {"instruction": question, "input": "", "output": answer},
            {"prompt": question, "completion": answer},
            {
                "conversations": [
                    {"from": "human", "value": question},
                    {"from": "gpt", "value": answer},
                ]
            },
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            },
        ]
        found = [taken(row) for row in same]
        assert len({each[1:] for each in found}) == 1
        assert len({input_hash(normal_form(each.text)) for each in found}) == 1
        assert len({each.row_format for each in found}) == 4

    @given(contents, contents, contents)
    def test_another_answer_is_another_example_of_the_same_input(self, question, answer, other):
        one, two = (taken({"prompt": question, "completion": x}) for x in (answer, other))
        assert one.text == two.text
        assert (one.answer == two.answer) == (one.example == two.example) == (answer == other)


PART = {"type": "image_url", "image_url": {"url": "x"}}

# name, task, form, record, what the message says
BAD = [
    (
        "no assistant turn",
        "instruction",
        "auto",
        chat("a"),
        "no assistant turn in 'messages' (1 turn); expected an assistant turn: it is what is ",
    ),
    (
        "an empty conversation",
        "instruction",
        "auto",
        {"messages": []},
        "an empty list in 'messages'; expected a list of turns",
    ),
    (
        "an end without an answer",
        "instruction",
        "auto",
        chat("a", "b", "c"),
        "a conversation of 3 turns in 'messages' that ends with a user turn; expected an assistant "
        "turn at the end: it is what is learnt. Fix: remove the last turn",
    ),
    (
        "an empty turn",
        "instruction",
        "auto",
        chat("a", " \n"),
        "no content in turn 2 of 'messages'; expected a text that is not empty",
    ),
    (
        "a turn without content",
        "instruction",
        "auto",
        {"conversations": [{"from": "human"}, {"from": "gpt", "value": "b"}]},
        "no content in turn 1 of 'conversations'",
    ),
    (
        "an unknown role",
        "instruction",
        "auto",
        chat("a", "asistant|b"),
        "the unknown role 'asistant' in turn 2 of 'messages'; expected one of system, user, human",
    ),
    ("no role", "instruction", "auto", {"messages": [{"content": "a"}]}, "no role in turn 1"),
    (
        "a turn that is a text",
        "instruction",
        "auto",
        {"messages": ["a", "b"]},
        "str in turn 1 of 'messages'; expected role and content",
    ),
    (
        "two turns of one role",
        "instruction",
        "auto",
        chat("a", "user|b", "assistant|c"),
        "a turn of user after one of user in 'messages' (turn 2 of 3); expected a turn of "
        "assistant: user and assistant take turns. Fix: join the two turns",
    ),
    (
        "an answer before any question",
        "instruction",
        "auto",
        {"conversations": [{"from": "gpt", "value": "a"}]},
        "a turn of assistant at the beginning in 'conversations' (turn 1 of 1); expected a turn of "
        "system or user",
    ),
    (
        "an answer to the system",
        "instruction",
        "auto",
        chat("system|a", "b"),
        "a turn of assistant after one of system in 'messages' (turn 2 of 2); expected a turn of "
        "user",
    ),
    (
        "a system turn in the middle",
        "instruction",
        "auto",
        chat("a", "b", "system|c", "user|d", "assistant|e"),
        "expected a system turn only at the beginning",
    ),
    (
        "a tool nobody called",
        "instruction",
        "auto",
        chat("a", "tool|b", "assistant|c"),
        "a turn of tool after one of user in 'messages' (turn 2 of 3); expected a tool's turn only "
        "after an assistant turn with tool calls",
    ),
    (
        "an end with a tool",
        "instruction",
        "auto",
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
        "a call that cannot be read",
        "instruction",
        "auto",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": "x"},
            ]
        },
        "a tool call that cannot be read in turn 2 of 'conversations'",
    ),
    (
        "tools that are none",
        "instruction",
        "auto",
        chat("a", "b", tools="weather"),
        "something else than tools in 'tools'",
    ),
    (
        "an image",
        "instruction",
        "auto",
        {"messages": [{"role": "user", "content": [PART]}, *turns("x", "b")[1:]]},
        "a part of type 'image_url' in turn 1 of 'messages'; expected parts of type 'text'",
    ),
    (
        "content that is a number",
        "instruction",
        "auto",
        {"messages": [{"role": "user", "content": 5}]},
        "a number as content in turn 1 of 'messages'",
    ),
    (
        "messages as Python prints them",
        "instruction",
        "auto",
        {"messages": str(turns("a", "b"))},
        "a text that is no JSON in 'messages'",
    ),
    (
        "messages that are an object",
        "instruction",
        "auto",
        {"messages": {"role": "user"}},
        "an object in 'messages'; expected a list of turns",
    ),
    (
        "an instruction that is empty",
        "instruction",
        "auto",
        {"instruction": "", "input": "a", "output": "b"},
        "no text in 'instruction'; expected a text that is not empty. Fix: fill in or remove",
    ),
    (
        "an output that is null",
        "instruction",
        "auto",
        {"instruction": "a", "output": None},
        "no text in 'output'",
    ),
    (
        "an input that is a list",
        "instruction",
        "auto",
        {"instruction": "a", "input": ["x"], "output": "b"},
        "a list in 'input'; expected a text",
    ),
    (
        "a prompt that is a list",
        "completion",
        "auto",
        {"prompt": turns("a"), "completion": "b"},
        "a list in 'prompt'; expected a text. Fix: name a column of texts as data.columns.prompt; "
        "chat messages have a form of their own",
    ),
    (
        "a completion that is a number",
        "completion",
        "auto",
        {"prompt": "a", "completion": 4},
        "a number in 'completion'",
    ),
    ("an empty text", "completion", "auto", {"text": "\t"}, "no text in 'text'"),
    (
        "chosen and rejected alike",
        "preference",
        "auto",
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        "the same in 'chosen' and 'rejected'; expected two different answers. Fix: remove the row",
    ),
    (
        "an answer without a prompt",
        "preference",
        "auto",
        {"chosen": "a", "rejected": "b"},
        "no prompt to the answer in 'chosen'; expected a text or messages in 'prompt'",
    ),
    (
        "answers to different prompts",
        "preference",
        "auto",
        {"chosen": turns("a", "b"), "rejected": turns("c", "d")},
        "different conversations in 'chosen' and 'rejected'; expected two answers to one prompt",
    ),
    (
        "conversations about something else than the prompt",
        "preference",
        "auto",
        {"prompt": "x", "chosen": turns("a", "b"), "rejected": turns("a", "c")},
        "expected two answers to one prompt, that in 'prompt'",
    ),
    (
        "a chosen conversation without an answer",
        "preference",
        "auto",
        {"chosen": turns("a", "b", "c"), "rejected": turns("a", "d")},
        "a conversation of 3 turns in 'chosen' that ends with a user turn",
    ),
    (
        "a form of another task",
        "completion",
        "auto",
        {"id": 1, "instruction": "a", "output": "b"},
        "the form alpaca (columns: 'id', 'instruction', 'output'); expected columns that "
        "completion can be trained on (prompt-completion: prompt, completion; or text: text). Fix: "
        "set task to instruction, or set data.columns to {prompt: instruction, completion: output}",
    ),
    (
        "another form than the one that was set",
        "instruction",
        "alpaca",
        {"messages": turns("a", "b")},
        "the form messages (columns: 'messages'); expected columns that instruction can be trained "
        "on (alpaca: instruction, output). Fix: set data.row_format to messages, or to auto",
    ),
    (
        "columns that may be meant",
        "instruction",
        "auto",
        {"question": "a", "answer": "b"},
        "no known form (columns: 'question', 'answer'); expected columns that instruction can be "
        "trained on (messages: messages; or sharegpt: conversations; or alpaca: instruction, "
        "output; or prompt-completion: prompt, completion). Fix: set data.columns to {prompt: "
        "question, completion: answer}",
    ),
    (
        "columns that say nothing",
        "preference",
        "auto",
        {"x": "a", "y": "b"},
        "Fix: name the columns by data.columns, such as {chosen: COLUMN, rejected: COLUMN}",
    ),
]


class TestBadRecords:
    @pytest.mark.parametrize(
        ("task", "form", "record", "message"),
        [case[1:] for case in BAD],
        ids=[case[0] for case in BAD],
    )
    def test_it_is_refused(self, task, form, record, message):
        with pytest.raises(BadData) as error:
            taken(record, task, form)
        assert str(error.value).startswith("a.jsonl:7: found ")
        assert message in str(error.value)

    def test_messages_name_the_columns_of_the_data(self):
        with pytest.raises(BadData, match="no text in 'q'"):
            taken({"q": "", "a": "b"}, named=FAQ_COLUMNS)


class TestSettings:
    def test_names_that_no_form_has(self):
        with pytest.raises(BadRecipe, match=r"found 'promt'.*Fix: write 'prompt'"):
            check_settings("instruction", "auto", {"promt": "q"})
        with pytest.raises(BadRecipe, match=r"data\.columns: found 'chosen'"):
            check_settings("instruction", "auto", {"chosen": "q"})
        with pytest.raises(BadRecipe, match="leave it out"):
            check_settings("text-classification", "auto", {"prompt": "q"})
        with pytest.raises(BadRecipe, match=r"data\.columns\.prompt: found an empty name"):
            check_settings("completion", "auto", {"prompt": ""})

    @pytest.mark.parametrize(
        ("task", "format", "settings", "message"),
        [
            ("completion", "jsonl", {"text_pair": "x"}, r"data\.text_pair: found a setting that"),
            ("preference", "jsonl", {"labels": ["a"]}, r"data\.labels: found a setting that"),
            ("completion", "jsonl", {"keep_columns": ["example"]}, "found 'example', a name"),
            ("completion", "jsonl", {"keep_columns": ["label"]}, "found 'label', a name"),
            ("instruction", "text-folders", {}, r"data\.format: found text-folders"),
        ],
    )
    def test_settings_that_do_not_fit(self, task, format, settings, message):
        with pytest.raises(BadRecipe, match=message):
            Reading.of(DataRecipe(uri="x", **settings), format, "", 0, task)

    def test_what_is_read_is_part_of_the_key(self):
        def key(task="instruction", **settings):
            return str(Reading.of(DataRecipe(uri="x", **settings), "csv", "", 0, task).key_part())

        keys = [
            key(),
            key(row_format="alpaca"),
            key(columns=FAQ_COLUMNS),
            key("completion"),
            key("text-classification"),
        ]
        assert len(set(keys)) == len(keys)
        # What only classification reads does not count.
        assert key(label="topic") == key()

    def test_tables_are_looked_at_before_they_are_read(self):
        how = Reading.of(DataRecipe(uri="x"), "parquet", "", 0, "instruction")
        table = pa.Table.from_pylist([chat("a", "b")])
        assert check_table(table.schema, how, "a.parquet")
        with pytest.raises(BadData, match=r"a\.parquet: found no known form \(columns: 'x'\)"):
            check_table(pa.schema([("x", pa.string())]), how, "a.parquet")
        roles = pa.dictionary(pa.int8(), pa.string())
        turn = pa.struct([("role", roles), ("content", pa.string())])
        with pytest.raises(BadData, match="dictionary-encoded values within the column 'messages'"):
            check_table(pa.schema([("messages", pa.list_(turn))]), how, "a.arrow")
