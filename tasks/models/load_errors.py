"""Telling files that are broken from a machine that is short of something."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from safetensors import SafetensorError

from tasks.contracts.errors import BadModel, CodeFailed, describe


@contextlib.contextmanager
def reading(loader: str, where: str, fix: str) -> Iterator[None]:
    """Within it, files that cannot be loaded raise `BadModel`.

    Args:
        loader: The class of transformers or peft that loads them.
        where: What is to blame for them, as in `BurnishError`.
        fix: What to do about it.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if type(describe(error)) is not CodeFailed:
            raise  # Typed already, or out of memory or disk: no fault of the model.
        raise BadModel(
            where,
            f"weights that cannot be loaded ({one_line(error)})",
            f"a model that {loader} can load",
            fix,
        ) from error


def reading_base(loader: str) -> contextlib.AbstractContextManager[None]:
    """`reading` of a base model."""
    return reading(
        loader,
        "model.uri",
        "check that the model's files are whole, and that transformers has its architecture",
    )


def reading_shipped(loader: str) -> contextlib.AbstractContextManager[None]:
    """`reading` of a model that was trained here."""
    return reading(loader, "the model", "start the run again: what is damaged is made anew")


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
