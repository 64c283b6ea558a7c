"""Text encodings: decoding, and errors that name the file and the byte."""

from __future__ import annotations

import codecs

from tasks.contracts.errors import BadData, BadRecipe


def bad_encoding(name: str, position: int, encoding: str, error: UnicodeDecodeError) -> BadData:
    """The error for text that is not in the encoding that the recipe names.

    Args:
        name: The file.
        position: Line, from 1; 0 where it is not known.
        encoding: As the recipe says.
        error: What decoding said.
    """
    byte = error.object[error.start]
    return BadData(
        f"{name}:{position}" if position else name,
        f"byte 0x{byte:02x} ({error.reason}) in text that should be {encoding}",
        f"text in {encoding} (data.encoding)",
        "set data.encoding to what the file is in, such as cp1252; where files differ, to a list "
        "that is tried in order, such as 'utf-8, cp1252'",
    )


def too_long(where: str, limit: int, hint: str = "") -> BadData:
    """The error for a record that is larger than `data.max_record_mb`."""
    return BadData(
        where,
        f"a record of more than {limit / 1e6:g} MB{hint}",
        "records below data.max_record_mb",
        "check that the file has one record per line, or raise data.max_record_mb",
    )


def not_text(where: str) -> BadData:
    """The error for binary content in a text format."""
    return BadData(
        where,
        "binary content (a NUL byte)",
        "a text file",
        "check data.format; convert UTF-16 to UTF-8, and decompress what is compressed",
    )


def encodings(said: str) -> list[str]:
    """The encodings that `data.encoding` names: one, or several to be tried in order."""
    return [each.strip() for each in said.split(",") if each.strip()]


def decode(data: bytes, said: str) -> str:
    """Text of bytes, in the first of the named encodings that fits.

    Raises:
        UnicodeDecodeError: None fits; it is about the first.
    """
    problem = None
    for encoding in encodings(said):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            problem = problem or error
    raise problem


def check_encoding(said: str) -> None:
    """Raises BadRecipe: An encoding is unknown, or cannot be cut into lines."""
    for encoding in encodings(said) or [said]:
        try:
            same = '\n\r,;\t"{}'.encode(encoding) == b'\n\r,;\t"{}'
        except LookupError:
            raise BadRecipe(
                "data.encoding", repr(said), "encodings that Python knows", "utf-8, cp1252…"
            ) from None
        if not same:
            raise BadRecipe(
                "data.encoding",
                repr(said),
                "an encoding in which a line break is one byte",
                "convert the files to UTF-8",
            )


def without_mark(said: str) -> str:
    first = encodings(said)[0]
    return "utf-8-sig" if codecs.lookup(first).name == "utf-8" else first
