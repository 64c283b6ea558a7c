"""Reading Parquet and Arrow files: schemas, nested values, damaged files."""

from __future__ import annotations

import math
from datetime import date, datetime, time
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.contracts.errors import BadData
from tasks.contracts.recipe_data import DataRecipe
from tasks.load.dataset import dataset_shards
from tasks.load.read_parquet_arrow import check_table
from tasks.load.read_settings import ReadSettings
from tasks.storage.store import open_store
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


class TestKeptValues:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([date(2024, 1, 1), date(2024, 1, 2)], {"2024-01-01", "2024-01-02"}),
            ([datetime(2024, 1, 1, 9), datetime(2024, 1, 2, 9)], {"2024-01-01 09:00:00"}),
            ([time(9, 30), time(10)], {"09:30:00"}),
            ([Decimal("1.50"), Decimal("2.00")], {"1.50", "2.00"}),
            ([{"b": 1, "a": 2}, {"b": 3, "a": 4}], {'{"b":1,"a":2}'}),
            ([[1, 2], [3]], {"[1,2]", "[3]"}),
        ],
        ids=["dates", "datetimes", "times", "decimals", "structs", "lists"],
    )
    def test_are_texts_without_quotation_marks(self, tmp_path, values, expected):
        rows = [{**row, "kept": values[n % 2]} for n, row in enumerate(some_rows(60))]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        context = run_context(tmp_path)
        loaded = load_data(tmp_path / "a.parquet", context, keep_columns=["kept"])
        store = open_store(context.store)
        [shard] = dataset_shards(store, loaded.artifact)
        assert expected <= set(pq.read_table(store.file(shard, "rows.parquet"))["kept"].to_pylist())

    def test_of_bytes_are_refused(self, tmp_path):
        rows = [{**row, "kept": b"\xff"} for row in some_rows(3)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        with pytest.raises(BadData, match=r"a\.parquet:1: found a value of type bytes in 'kept'"):
            load_data(tmp_path / "a.parquet", run_context(tmp_path), keep_columns=["kept"])


class TestNestedValues:
    @pytest.mark.parametrize(
        ("value", "found"),
        [
            (Decimal("1.50"), "a value of type Decimal in 'messages'"),
            (b"x", "a value of type bytes in 'messages'"),
            (math.nan, "nan in 'messages'"),
        ],
    )
    def test_that_json_cannot_hold_are_refused_by_row(self, tmp_path, value, found):
        pq.write_table(pa.Table.from_pylist([calls_with(value)] * 3), tmp_path / "a.parquet")
        with pytest.raises(BadData) as error:
            load_data(tmp_path / "a.parquet", run_context(tmp_path), "instruction")
        assert str(error.value).startswith(f"a.parquet:1: found {found}")

    def test_of_dates_are_texts(self, tmp_path):
        rows = [calls_with(date(2024, 1, 1)) for _ in range(3)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        settings = ReadSettings.of(DataRecipe(uri="x"), "parquet", "", 0, "instruction")
        example = settings.row_formats.parse(rows[0], "a.parquet:1").example
        assert '"value":"2024-01-01"' in example


def calls_with(value):
    """A chat whose tool call has an argument of this value."""
    function = {"name": "set", "arguments": {"value": value}}
    return {
        "messages": [
            {"role": "user", "content": "Set it.", "tool_calls": None},
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        ]
    }


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
