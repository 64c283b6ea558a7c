"""Text encodings: decoding, and the errors for files that are not the expected text."""

from __future__ import annotations

import codecs

from tasks.contracts.errors import BadData, BadRecipe


def bad_encoding(name: str, position: int, encoding: str, error: UnicodeDecodeError) -> BadData:
    """Return the error for text that is not in the recipe's encoding.

    Args:
        name: The file.
        position: Line, from 1; 0 if unknown.
        encoding: `data.encoding`.
        error: The decoding error.
    """
    byte = error.object[error.start]
    return BadData(
        f"{name}:{position}" if position else name,
        f"byte 0x{byte:02x} ({error.reason}) in text that should be {encoding}",
        f"text in {encoding} (data.encoding)",
        "set data.encoding to the file's encoding, such as cp1252, or, if files differ, to a list "
        "to try in order, such as 'utf-8, cp1252'",
    )


def too_long(where: str, max_bytes: int, hint: str = "") -> BadData:
    """Return the error for a record larger than `data.max_record_mb`."""
    return BadData(
        where,
        f"a record of more than {max_bytes / 1e6:g} MB{hint}",
        "records of at most data.max_record_mb",
        "check that the file has one record per line, or raise data.max_record_mb",
    )


def not_text(where: str) -> BadData:
    """Return the error for binary content in a text format."""
    return BadData(
        where,
        "binary content (a NUL byte)",
        "a text file",
        "check data.format; convert UTF-16 to UTF-8, and decompress compressed files",
    )


def encodings(setting: str) -> list[str]:
    """Return the encodings in `data.encoding`: one, or several to try in order."""
    return [each.strip() for each in setting.split(",") if each.strip()]


def decode(data: bytes, setting: str) -> str:
    """Decode bytes with the first encoding of `data.encoding` that fits.

    Raises:
        UnicodeDecodeError: None fits; the error is that of the first.
    """
    problem = None
    for encoding in encodings(setting):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            problem = problem or error
    raise problem


def check_encoding(setting: str) -> None:
    """Raise BadRecipe if an encoding is unknown or not ASCII-compatible."""
    for encoding in encodings(setting) or [setting]:
        try:
            same = '\n\r,;\t"{}'.encode(encoding) == b'\n\r,;\t"{}'
        except LookupError:
            raise BadRecipe(
                "data.encoding",
                repr(setting),
                "encodings that Python knows",
                "use utf-8 or cp1252, for example",
            ) from None
        if not same:
            raise BadRecipe(
                "data.encoding",
                repr(setting),
                "an ASCII-compatible encoding",
                "convert the files to UTF-8",
            )


def without_bom(setting: str) -> str:
    """Return the first encoding of `data.encoding`, in the variant that skips a byte order mark."""
    first = encodings(setting)[0]
    return "utf-8-sig" if codecs.lookup(first).name == "utf-8" else first
