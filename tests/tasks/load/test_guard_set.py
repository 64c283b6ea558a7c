"""The guard set: what its rows are recognised as, and what is refused."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from tasks.contracts.errors import BadData, BadRecipe, NotFound
from tasks.load.dataset import write_examples
from tasks.load.guard_set import GuardInputs, load_guard
from tasks.load.splits import TEST
from tasks.storage.store import open_store
from tests.tasks.samples import run_context, some_rows, write_jsonl


@pytest.fixture
def tokenizer(tmp_path):
    """Stores a tokenizer's configuration, with or without a chat template."""

    def store(template="{{ messages }}"):
        folder = tmp_path / "tokenizer"
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
        if template:
            (folder / "chat_template.jinja").write_text(template)
        return open_store(run_context(tmp_path).store).put("tokenizer", folder)

    return store


def guard_of(tmp_path, rows, tokenizer, task="instruction", **guard) -> GuardInputs:
    uri = write_jsonl(tmp_path / "guard.jsonl", rows)
    return GuardInputs(guard={"uri": str(uri), **guard}, task=task, tokenizer=tokenizer)


TEXTS = [{"text": row["text"]} for row in some_rows(6)]
ANSWERS = [{"prompt": row["text"], "completion": row["label"]} for row in some_rows(6)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    }
    for row in ANSWERS
]


class TestRows:
    @pytest.mark.parametrize(
        ("rows", "task", "expected"),
        [
            (TEXTS, "instruction", "completion"),
            (TEXTS, "preference", "completion"),
            (CHATS, "completion", "instruction"),
            (ANSWERS, "instruction", "instruction"),
            (ANSWERS, "completion", "completion"),
        ],
    )
    def test_their_task_is_recognised(self, tmp_path, tokenizer, rows, task, expected):
        found = load_guard(guard_of(tmp_path, rows, tokenizer(), task), run_context(tmp_path))
        assert found.task == expected

    def test_all_are_test_examples_however_few(self, tmp_path, tokenizer):
        context = run_context(tmp_path)
        found = load_guard(guard_of(tmp_path, TEXTS, tokenizer()), context)
        assert found.loaded.rows == {"train": 0, "validation": 0, "test": 6}
        path = write_examples(context, found.loaded.artifact, TEST, tmp_path / "t.parquet")
        assert sorted(pq.read_table(path)["text"].to_pylist()) == sorted(
            row["text"] for row in TEXTS
        )

    def test_columns_may_be_renamed(self, tmp_path, tokenizer):
        rows = [{"q": row["prompt"], "a": row["completion"]} for row in ANSWERS]
        columns = {"prompt": "q", "completion": "a"}
        inputs = guard_of(tmp_path, rows, tokenizer(), columns=columns)
        assert load_guard(inputs, run_context(tmp_path)).task == "instruction"

    def test_are_cached(self, tmp_path, tokenizer):
        inputs = guard_of(tmp_path, TEXTS, tokenizer())
        one, two = (load_guard(inputs, run_context(tmp_path, run_id=run)) for run in ("1", "2"))
        assert two == one


class TestRefusals:
    def test_rows_of_no_row_format_name_the_guard(self, tmp_path, tokenizer):
        inputs = guard_of(tmp_path, [{"x": 1}] * 3, tokenizer())
        unknown = r"evaluation\.guard, .*guard\.jsonl:1.*no known row format"
        with pytest.raises(BadData, match=unknown):
            load_guard(inputs, run_context(tmp_path))

    def test_a_missing_file(self, tmp_path, tokenizer):
        inputs = guard_of(tmp_path, TEXTS, tokenizer())
        (tmp_path / "guard.jsonl").unlink()
        with pytest.raises(NotFound, match=r"evaluation\.guard"):
            load_guard(inputs, run_context(tmp_path))

    def test_chats_without_a_chat_template(self, tmp_path, tokenizer):
        inputs = guard_of(tmp_path, CHATS, tokenizer(""), "completion")
        with pytest.raises(BadRecipe, match="without a chat template"):
            load_guard(inputs, run_context(tmp_path))
