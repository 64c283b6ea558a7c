"""Row formats: recognition, parsing, and rows that are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.contracts.errors import BadData, BadRecipe
from tasks.contracts.task_tables import ROW_FORMATS
from tasks.load.row_formats import RowFormats, answer_of, check_settings
from tasks.load.splits import input_hash, normal_form
from tests.tasks.samples import FAQ_COLUMNS, chat, faq_rows, parse_row, turns


class TestRowFormats:
    def test_every_row_format_gives_the_same_example(self):
        rows = {
            "alpaca": [parse_row(row) for row in faq_rows("faq-en-alpaca.jsonl")],
            "sharegpt": [parse_row(row) for row in faq_rows("faq-en-sharegpt.jsonl")],
            "csv": [parse_row(row, column_names=FAQ_COLUMNS) for row in faq_rows("faq-en.csv")],
            "jsonl": [parse_row(row, column_names=FAQ_COLUMNS) for row in faq_rows("faq-en.jsonl")],
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
        found = parse_row({"text": "All of it. "}, "completion")
        assert found == ("text", "All of it. ", '{"text":"All of it. "}', "", ())

    def test_prompt_and_completion(self):
        row = faq_rows("faq-en.jsonl")[0]
        found = parse_row(row, "completion", column_names=FAQ_COLUMNS)
        assert found.text == row["q"]
        assert json.loads(found.example) == {"prompt": row["q"], "completion": row["a"]}
        assert found.lengths == (len(row["a"]),)

    def test_alpaca_with_an_input_and_a_system_prompt(self):
        found = parse_row(
            {"instruction": "Sum", "input": "1 2", "output": "3", "system": "Be brief"}
        )
        assert json.loads(found.example)["messages"] == [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "Sum\n\n1 2"},
            {"role": "assistant", "content": "3"},
        ]


PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}


WHOLE = {
    "prompt": turns("Why?"),
    "chosen": turns("assistant|Because."),
    "rejected": turns("assistant|No."),
}


class TestPreference:
    def test_texts(self):
        found = parse_row(PAIR, "preference")
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
    def test_other_spellings_of_the_same_pair(self, row):
        assert parse_row(row, "preference") == parse_row(PAIR, "preference")

    def test_the_shared_messages_are_the_prompt(self):
        row = {
            "prompt": "q1",
            "chosen": turns("system|s", "user|q1", "assistant|a1", "user|q2", "assistant|good"),
            "rejected": turns("system|s", "user|q1", "assistant|a1", "user|q2", "assistant|bad"),
        }
        example = json.loads(parse_row(row, "preference").example)
        assert example["prompt"] == row["chosen"][:4]
        assert example["chosen"] == [{"role": "assistant", "content": "good"}]

    def test_conversations_with_several_answers(self):
        row = {"chosen": turns("q1", "a", "q2", "b"), "rejected": turns("q1", "a", "other", "c")}
        example = json.loads(parse_row(row, "preference").example)
        # Each side starts with an answer, even if both start with the same one.
        assert example["prompt"] == turns("q1")
        assert [turn["content"] for turn in example["rejected"]] == ["a", "other", "c"]

    def test_an_answer_that_looks_like_json_stays_text(self):
        row = {**PAIR, "chosen": "[1, 2]", "rejected": '["a"]'}
        example = json.loads(parse_row(row, "preference").example)
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
    def test_the_most_specific_format_wins(self, task, order):
        columns = {
            "messages": "messages",
            "sharegpt": "conversations",
            "alpaca": "output",
            "prompt-completion": "completion",
        }
        row = dict(EVERY)
        for form in order:
            assert parse_row(row, task).row_format == form
            assert parse_row(EVERY, task, form).row_format == form
            # A null counts as absent.
            row[columns.get(form, "text")] = None

    def test_every_format_of_every_task_is_parsed(self):
        for task, forms in ROW_FORMATS.items():
            for form in forms:
                assert parse_row(EVERY, task, form).row_format == form

    def test_renamed_columns(self):
        row = {"frage": "a", "antwort": "b", "prompt": 5}
        named = {"prompt": "frage", "completion": "antwort"}
        assert parse_row(row, column_names=named)[1:] == parse_row(chat("a", "b"))[1:]

    def test_columns_that_are_read(self):
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


class TestAnswerOf:
    def test_the_answer_of_every_kind_of_example(self):
        assert answer_of({"text": "a"}) == "a"
        assert answer_of({"prompt": "a", "completion": "b"}) == "b"
        assert answer_of(chat("a", "b")) == "b"
        assert answer_of({"chosen": turns("a", "b"), "rejected": []}) == "b"


contents = st.text(min_size=1, max_size=40).filter(
    lambda text: text.strip() and text.encode("utf-8", "ignore").decode() == text
)


class TestIdentity:
    @given(contents, contents)
    def test_all_formats_of_one_pair_give_one_example(self, question, answer):
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
        found = [parse_row(row) for row in same]
        assert len({each[1:] for each in found}) == 1
        assert len({input_hash(normal_form(each.text)) for each in found}) == 1
        assert len({each.row_format for each in found}) == 4

    @given(contents, contents, contents)
    def test_another_answer_is_another_example_of_the_same_input(self, question, answer, other):
        one, two = (parse_row({"prompt": question, "completion": x}) for x in (answer, other))
        assert one.text == two.text
        assert (one.answer == two.answer) == (one.example == two.example) == (answer == other)


# name, task, row format, record, part of the message
BAD = [
    (
        "an instruction that is empty",
        "instruction",
        "auto",
        {"instruction": "", "input": "a", "output": "b"},
        "no text in 'instruction'; expected a non-empty text. Fix: fill in or remove",
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
        "a list in 'prompt'; expected a text. Fix: set data.columns.prompt to a column of "
        "texts; for chat messages, use the row format messages",
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
        "equal chosen and rejected answers",
        "preference",
        "auto",
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        "equal answers in 'chosen' and 'rejected'; expected two different answers. Fix: remove "
        "the row",
    ),
    (
        "an answer without a prompt",
        "preference",
        "auto",
        {"chosen": "a", "rejected": "b"},
        "no prompt for the answer in 'chosen'; expected a text or messages in 'prompt'",
    ),
    (
        "answers to different prompts",
        "preference",
        "auto",
        {"chosen": turns("a", "b"), "rejected": turns("c", "d")},
        "different prompts in 'chosen' and 'rejected'; expected two answers to one prompt",
    ),
    (
        "conversations that do not contain the prompt",
        "preference",
        "auto",
        {"prompt": "x", "chosen": turns("a", "b"), "rejected": turns("a", "c")},
        "expected two answers to one prompt, the one in 'prompt'",
    ),
    (
        "a chosen conversation without an answer",
        "preference",
        "auto",
        {"chosen": turns("a", "b", "c"), "rejected": turns("a", "d")},
        "a conversation of 3 turns in 'chosen' that ends with a user turn",
    ),
    (
        "a row format of another task",
        "completion",
        "auto",
        {"id": 1, "instruction": "a", "output": "b"},
        "the row format alpaca (columns: 'id', 'instruction', 'output'); expected columns for "
        "the task completion (prompt-completion: prompt, completion; or text: text). Fix: "
        "set task to instruction, or set data.columns to {prompt: instruction, completion: output}",
    ),
    (
        "another row format than the configured one",
        "instruction",
        "alpaca",
        {"messages": turns("a", "b")},
        "the row format messages (columns: 'messages'); expected columns for the task "
        "instruction (alpaca: instruction, output). Fix: set data.row_format to messages, or to "
        "auto",
    ),
    (
        "columns with similar names",
        "instruction",
        "auto",
        {"question": "a", "answer": "b"},
        "no known row format (columns: 'question', 'answer'); expected columns for the task "
        "instruction (messages: messages; or sharegpt: conversations; or alpaca: instruction, "
        "output; or prompt-completion: prompt, completion). Fix: set data.columns to {prompt: "
        "question, completion: answer}",
    ),
    (
        "columns without similar names",
        "preference",
        "auto",
        {"x": "a", "y": "b"},
        "Fix: name the columns in data.columns, such as {chosen: COLUMN, rejected: COLUMN}",
    ),
]


class TestBadRecords:
    @pytest.mark.parametrize(
        ("task", "row_format", "record", "message"),
        [case[1:] for case in BAD],
        ids=[case[0] for case in BAD],
    )
    def test_a_bad_record_is_refused(self, task, row_format, record, message):
        with pytest.raises(BadData) as error:
            parse_row(record, task, row_format)
        assert str(error.value).startswith("a.jsonl:7: found ")
        assert message in str(error.value)

    def test_errors_name_the_columns_of_the_data(self):
        with pytest.raises(BadData, match="no text in 'q'"):
            parse_row({"q": "", "a": "b"}, column_names=FAQ_COLUMNS)


class TestCheckSettings:
    def test_columns_that_no_row_format_has_are_refused(self):
        with pytest.raises(BadRecipe, match=r"found 'promt'.*Fix: write 'prompt'"):
            check_settings("instruction", "auto", {"promt": "q"})
        with pytest.raises(BadRecipe, match=r"data\.columns: found 'chosen'"):
            check_settings("instruction", "auto", {"chosen": "q"})
        with pytest.raises(BadRecipe, match="leave it out"):
            check_settings("text-classification", "auto", {"prompt": "q"})
        with pytest.raises(BadRecipe, match=r"data\.columns\.prompt: found an empty name"):
            check_settings("completion", "auto", {"prompt": ""})
