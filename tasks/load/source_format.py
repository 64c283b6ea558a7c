"""Detects the format of a source's files from their names."""

from __future__ import annotations

from pathlib import PurePosixPath

from tasks.contracts.artifacts import Source, SourceFile
from tasks.contracts.errors import BadData
from tasks.contracts.recipe_data import DataRecipe
from tasks.load.read_settings import Format

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z")


def file_format(data: DataRecipe, source: Source) -> Format:
    """Return the format of a source's files.

    Raises:
        BadData: They are compressed, of several formats, or of an unknown format.
    """
    suffixes: dict[str, str] = {}
    for file in source.files:
        suffixes.setdefault(PurePosixPath(file.path).suffix.lower(), file.path)
    for suffix in _COMPRESSED:
        if suffix in suffixes:
            raise BadData(
                suffixes[suffix],
                f"a compressed file ({suffix})",
                "uncompressed files",
                "decompress it, or use Parquet, which is compressed itself",
            )
    if data.format == "text-folders" and (tables := sorted(suffixes.keys() & _FORMATS.keys())):
        raise BadData(
            suffixes[tables[0]],
            f"a {tables[0]} file, but data.format is text-folders",
            "one text file per example",
            "set data.format to auto, and data.text and data.label to the file's columns",
        )
    if data.format != "auto":
        return data.format
    formats: dict[str, str] = {}
    for suffix, path in sorted(suffixes.items()):
        if suffix not in _FORMATS:
            raise BadData(
                path,
                f"a file of unknown format ({suffix or 'no extension'})",
                f"one of {', '.join(_FORMATS)}",
                "set data.format to text-folders for one text per file, in folders named by label"
                if suffix in (".txt", "")
                else "set data.format, or select the data files with a glob",
            )
        formats.setdefault(_FORMATS[suffix], path)
    if len(formats) > 1:
        listed = ", ".join(f"{format} ({path})" for format, path in formats.items())
        raise BadData(
            f"data.uri {source.uri}",
            f"files of several formats: {listed}",
            "one format",
            "select the files of one format with a glob, such as folder/*.jsonl",
        )
    return _FORMATS[next(iter(suffixes))]


def labelled_files(source: Source, labelled: bool = True) -> list[tuple[str, SourceFile]]:
    """Return the label and file of each text in text folders, sorted by label and content.

    Not sorted by name: a file that is renamed in its folder is the same example.

    Args:
        source: The files.
        labelled: Whether the folder's name is the label; else all labels are empty.

    Raises:
        BadData: A file is not in a folder.
    """
    found = []
    for file in source.files:
        label = PurePosixPath(file.path).parent.name if labelled else ""
        if labelled and not label:
            raise BadData(
                file.path,
                "a text file outside a label's folder",
                "one folder per label, with its texts in it",
                "set data.uri to the parent of the label folders",
            )
        found.append((label, file))
    return sorted(found, key=lambda item: (item[0], item[1].digest, item[1].path))
