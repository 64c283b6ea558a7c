"""The content of a chunk of a text file: its bytes, and its text in the recipe's encoding."""

from __future__ import annotations

from tasks.load.encodings import bad_encoding, decode, encodings
from tasks.load.read_settings import ReadJob


def chunk_bytes(job: ReadJob) -> bytes:
    """The bytes of a job's chunk."""
    with open(job.path, "rb") as file:
        file.seek(job.chunk.start)
        return file.read(job.chunk.stop - job.chunk.start)


def decode_line(data: bytes, job: ReadJob, line: int) -> str:
    """Decode bytes that begin at a line of the file.

    Args:
        data: The bytes.
        job: For the file's name and encoding.
        line: Number of the first line, from 1.

    Raises:
        BadData: They are not in the recipe's encoding; the error names the line.
    """
    try:
        return decode(data, job.settings.encoding)
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise bad_encoding(job.name, line, job.settings.encoding, error) from None


def decode_chunk(job: ReadJob) -> str:
    """The text of a job's chunk.

    Raises:
        BadData: As for `decode_line`.
    """
    data, first = chunk_bytes(job), job.chunk.first + 1
    if len(encodings(job.settings.encoding)) == 1:
        return decode_line(data, job, first)
    # Each line by itself: one line in the second encoding must not change how others are decoded.
    lines = data.splitlines(keepends=True)
    return "".join(decode_line(line, job, first + number) for number, line in enumerate(lines))
