"""Read settings: reserved names, settings that do not fit the task, cache keys."""

from __future__ import annotations

import pytest

from tasks.contracts.errors import BadRecipe
from tasks.contracts.recipe_data import DataRecipe
from tasks.load.read_settings import ReadSettings
from tests.tasks.samples import (
    FAQ_COLUMNS,
    GOOD_ROWS,
    assert_refused,
    json_lines,
    parametrize_refused,
)


class TestReadSettings:
    @pytest.mark.parametrize(
        ("task", "format", "settings", "message"),
        [
            ("completion", "jsonl", {"text_pair": "x"}, r"data\.text_pair: found a setting for"),
            ("preference", "jsonl", {"labels": ["a"]}, r"data\.labels: found a setting for"),
            ("completion", "jsonl", {"keep_columns": ["example"]}, "found 'example', a reserved"),
            ("completion", "jsonl", {"keep_columns": ["label"]}, "found 'label', a reserved"),
            ("instruction", "text-folders", {}, r"data\.format: found text-folders"),
        ],
    )
    def test_settings_that_do_not_fit_the_task_are_refused(self, task, format, settings, message):
        with pytest.raises(BadRecipe, match=message):
            ReadSettings.of(DataRecipe(uri="x", **settings), format, "", 0, task)

    def test_settings_that_affect_reading_are_part_of_the_key(self):
        def key(task="instruction", **settings):
            return str(
                ReadSettings.of(DataRecipe(uri="x", **settings), "csv", "", 0, task).key_part()
            )

        keys = [
            key(),
            key(row_format="alpaca"),
            key(columns=FAQ_COLUMNS),
            key("completion"),
            key("text-classification"),
        ]
        assert len(set(keys)) == len(keys)
        # A setting that only classification uses is not part of the key.
        assert key(label="topic") == key()


REFUSED = [
    (
        "a reserved name",
        {"a.jsonl": json_lines(*GOOD_ROWS)},
        {"keep_columns": ["raw"]},
        "data.keep_columns: found 'raw', a reserved column name",
    ),
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)
