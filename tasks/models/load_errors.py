"""Tell broken model files from a machine that lacks memory or disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from safetensors import SafetensorError

from tasks.contracts.errors import BadModel, CodeFailed, describe


@contextlib.contextmanager
def load_errors(loader: str, where: str, fix: str) -> Iterator[None]:
    """Raise `BadModel` for files that cannot be loaded inside the context.

    Args:
        loader: The class of transformers or peft that loads them.
        where: The field or object at fault, as in `BurnishError`.
        fix: What to do about it.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if type(describe(error)) is not CodeFailed:
            raise  # Already typed, or out of memory or disk: the model is not at fault.
        raise BadModel(
            where,
            f"weights that cannot be loaded ({one_line(error)})",
            f"a model that {loader} can load",
            fix,
        ) from error


def base_load_errors(loader: str) -> contextlib.AbstractContextManager[None]:
    """`load_errors` for a base model."""
    return load_errors(
        loader,
        "model.uri",
        "check that the model's files are complete and that transformers supports its architecture",
    )


def release_load_errors(loader: str) -> contextlib.AbstractContextManager[None]:
    """`load_errors` for a model that was trained here."""
    return load_errors(loader, "the model", "start the run again: damaged files are rebuilt")


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
