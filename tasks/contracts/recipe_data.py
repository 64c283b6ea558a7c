"""The recipe's section on data: where it is, and how it is read and split."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from tasks.contracts.base import Contract

Task = Literal["text-classification", "completion", "instruction", "preference"]
RowFormat = Literal[
    "auto", "text", "prompt-completion", "alpaca", "messages", "sharegpt", "preference"
]


class SplitRecipe(Contract):
    """How examples go to train, validation and test."""

    by: Literal["hash", "column", "files"] = Field(
        "hash",
        title="Split by",
        description="hash: by a keyed hash of the input text (or of 'group_by'), so that an "
        "example keeps its split when data is added. column: a column says train, validation "
        "or test. files: the file name says it (train.jsonl, test-00000.parquet).",
    )
    column: str = Field(
        "",
        title="Split column",
        description="The column that names the split. Only for a split by column.",
    )
    group_by: str = Field(
        "",
        title="Keep together by",
        description="Rows with the same value in this column go to the same split: an author, a "
        "customer. Only for a split by hash.",
    )
    test: float = Field(
        0.15,
        gt=0,
        lt=1,
        title="Test share",
        description="Share of examples in the test split, for a split by hash.",
    )
    validation: float = Field(
        0.1,
        gt=0,
        lt=1,
        title="Validation share",
        description="Share of examples that select the best epoch, for a split by hash.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> SplitRecipe:
        if self.test + self.validation >= 1:
            raise ValueError(
                f"test ({self.test}) and validation ({self.validation}) together leave nothing "
                "to train on: their sum must be below 1"
            )
        if (self.by == "column") != bool(self.column):
            raise ValueError("'column' must be given when, and only when, 'by' is column")
        if self.group_by and self.by != "hash":
            raise ValueError("'group_by' only works with a split by hash")
        return self


class DataRecipe(Contract):
    """What to train on."""

    cache_key_excludes = frozenset({"uri"})

    uri: str | tuple[str, ...] = Field(
        title="Source",
        description="A file, folder or glob; s3://bucket/prefix; hf://owner/name@revision; "
        "package:module/path. A list reads several.",
    )
    format: Literal["auto", "jsonl", "csv", "parquet", "arrow", "text-folders"] = Field(
        "auto",
        title="Format",
        description="auto: by extension (.jsonl .json .csv .tsv .parquet .arrow). text-folders: "
        "one text file per example, in a folder named by its label.",
    )
    text: str = Field("text", title="Text column", description="The column that the model reads.")
    text_pair: str = Field(
        "",
        title="Second text column",
        description="For text pairs, such as premise and hypothesis.",
    )
    label: str = Field("label", title="Label column", description="The column to predict.")
    labels: tuple[str, ...] = Field(
        (),
        title="Labels",
        description="The allowed labels; others are refused. Empty: the labels found in the data.",
    )
    normalize_labels: bool = Field(
        False,
        title="Normalize labels",
        description="Merge labels that differ only in case, spaces, Unicode form, or as 1 and 1.0.",
    )
    label_map: dict[str, str] = Field(
        {},
        title="Label map",
        description="Labels to rename or merge, such as {neg: negative, NEG: negative}.",
    )
    empty: Literal["refuse", "skip"] = Field(
        "refuse",
        title="Empty rows",
        description="Rows without a text, a label or an answer. refuse: stop, and list them. skip: "
        "leave them out, and count them in the report.",
    )
    conflicts: Literal["drop", "keep-train", "refuse"] = Field(
        "drop",
        title="Conflicting labels",
        description="Texts with more than one label. drop: leave out. keep-train: train on them, "
        "but never validate or test. refuse: stop, and list them.",
    )
    row_format: RowFormat = Field(
        "auto",
        title="Row format",
        description="For language models. auto: detected for each row. text: one text. "
        "prompt-completion: prompt, completion. alpaca: instruction, input, output. messages: chat "
        "messages with role and content. sharegpt: conversations with from and value. preference: "
        "prompt, chosen, rejected.",
    )
    columns: dict[str, str] = Field(
        {},
        title="Column names",
        description="For language models: your names of the row format's columns, such as "
        "{prompt: question, completion: answer}.",
    )
    keep_columns: tuple[str, ...] = Field(
        (),
        title="Columns to keep",
        description="Other columns to keep, so that the evaluation can be sliced by them.",
    )
    encoding: str = Field(
        "utf-8",
        title="Encoding",
        description="Encoding of text files, such as utf-8. A list, such as 'utf-8, cp1252', "
        "is tried in order for each file.",
    )
    delimiter: str = Field(
        ",", min_length=1, max_length=1, title="CSV delimiter", description="One character."
    )
    max_record_mb: float = Field(
        8.0,
        gt=0,
        le=512,
        title="Largest record (MB)",
        description="Longer lines or text files are refused: the file is nearly always broken.",
    )
    split: SplitRecipe = Field(
        default_factory=SplitRecipe, title="Splits", description="Train, validation and test."
    )

    @field_validator("uri")
    @classmethod
    def _some_data(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or not all(value if isinstance(value, tuple) else (value,)):
            raise ValueError("name at least one file, folder or URI")
        return value

    @property
    def uris(self) -> tuple[str, ...]:
        """All data URIs, as a tuple."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri
