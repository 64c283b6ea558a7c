"""Reading Parquet and Arrow files: schemas, nested values, damaged files."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.errors import BadData
from tasks.contracts.recipe_data import DataRecipe
from tasks.load.read_settings import ReadSettings
from tasks.load.read_tables import check_table
from tests.tasks.samples import (
    assert_refused,
    chat,
    chats,
    faq_rows,
    load_data,
    parametrize_refused,
    report_of,
    run_context,
    some_rows,
)


class TestTables:
    def test_a_folder_saved_by_datasets(self, tmp_path):
        import datasets

        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
        )
        rows = [{"text": row["text"], "label": n % 2} for n, row in enumerate(some_rows(400))]
        saved = datasets.Dataset.from_list(rows, features)
        datasets.DatasetDict(
            train=saved.select(range(300)),
            validation=saved.select(range(300, 350)),
            test=saved.select(range(350, 400)),
        ).save_to_disk(tmp_path / "saved")
        loaded = load_data(tmp_path / "saved", run_context(tmp_path), split={"by": "files"})
        assert loaded.labels == ("bad", "good")
        assert loaded.rows == {"train": 300, "validation": 50, "test": 50}

    def test_a_table_with_several_row_formats(self, tmp_path):
        rows = faq_rows()
        mixed = chats(rows[:200]) + [
            {"instruction": row["q"], "output": row["a"]} for row in rows[200:]
        ]
        # The first row decides the table's columns.
        mixed[0] = {"instruction": None, "output": None, **mixed[0]}
        pq.write_table(pa.Table.from_pylist(mixed), tmp_path / "a.parquet")
        context = run_context(tmp_path)
        report = report_of(load_data(tmp_path / "a.parquet", context, "instruction"), context)
        assert report["row_formats"] == {"alpaca": 303, "messages": 200}


class TestCheckTable:
    def test_columns_are_checked_before_rows_are_read(self):
        settings = ReadSettings.of(DataRecipe(uri="x"), "parquet", "", 0, "instruction")
        table = pa.Table.from_pylist([chat("a", "b")])
        assert check_table(table.schema, settings, "a.parquet")
        no_format = r"a\.parquet: found no known row format \(columns: 'x'\)"
        with pytest.raises(BadData, match=no_format):
            check_table(pa.schema([("x", pa.string())]), settings, "a.parquet")
        roles = pa.dictionary(pa.int8(), pa.string())
        turn = pa.struct([("role", roles), ("content", pa.string())])
        encoded = "dictionary-encoded values in the nested column 'messages'"
        with pytest.raises(BadData, match=encoded):
            check_table(pa.schema([("messages", pa.list_(turn))]), settings, "a.arrow")

    @pytest.mark.parametrize(
        ("column", "values", "message"),
        [
            ("text", [1, 2], "a.parquet: found a column 'text' of type int64"),
            ("text", ["a", None], "a.parquet:2: found no text in 'text'"),
            ("label", ["a", None], "a.parquet:2: found no label in 'label'"),
            ("label", [["a"], ["b"]], "a.parquet:1: found a list as label"),
            ("other", ["a", "b"], "a.parquet: found no column"),
        ],
    )
    def test_bad_columns_and_values(self, tmp_path, column, values, message):
        columns = {"text": ["x", "y"], "label": ["p", "q"], column: values}
        if column == "other":
            del columns["text"]
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(BadData) as error:
            load_data(tmp_path / "a.parquet", run_context(tmp_path))
        assert message in str(error.value)


REFUSED = [
    (
        "a broken Parquet file",
        {"a.parquet": b"PAR1 and no more"},
        {},
        "a.parquet: found an unreadable file",
    ),
    (
        "a broken Arrow file",
        {"a.arrow": b"ARROW1 and no more"},
        {},
        "a.arrow: found an unreadable file",
    ),
]


@parametrize_refused(REFUSED)
def test_bad_data_is_refused(tmp_path, files, settings, message):
    assert_refused(tmp_path, files, settings, message)
