"""Reads rows from folders of texts: one text file per row, in a folder named by its label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.load.encodings import bad_encoding, decode, not_text
from tasks.load.read_settings import ReadJob


def read_text_folders(job: ReadJob) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield position, place for messages and record of each text file.

    Raises:
        BadData: A file is not text in the recipe's encoding.
    """
    for number, (label, name, path) in enumerate(job.files):
        data = Path(path).read_bytes()
        if b"\0" in data:
            raise not_text(name)
        try:
            text = decode(data, job.settings.encoding)
        except UnicodeDecodeError as error:
            line = 1 + data.count(b"\n", 0, error.start)
            raise bad_encoding(name, line, job.settings.encoding, error) from None
        record = {
            job.settings.column_names.get("text", job.settings.text): text.removeprefix("\ufeff")
        }
        yield number, name, record | ({job.settings.label: label} if job.settings.label else {})
