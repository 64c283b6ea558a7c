"""One class per cause of failure: what broke, whether a retry helps, and what to do.

Every error names its place (a recipe field, a file, a row), what was found there, what was
expected, and the fix. The same four parts go as JSON from the programs to the flow, and from the
flow to the report.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar


class BurnishError(Exception):
    """A failure with a known cause.

    Args:
        where: The recipe field (`training.epochs`), file, row or URI that the error concerns.
        found: What is there.
        expected: What should be there.
        fix: What to do about it: one sentence, with the exact command if there is one.

    Attributes:
        history, kept: For a failed training, its losses so far, as in `Finetuned.history`, and how
            far it got, as a sentence. They are for the report, and do not go to other processes.
    """

    cause: ClassVar[str] = "code"
    retry_helps: ClassVar[bool] = False
    in_recipe: ClassVar[bool] = False
    """Whether the recipe must change before a retry can help."""
    in_request: ClassVar[bool] = False
    """Whether the run's own values must change, so that a retry cannot help."""

    def __init__(self, where: str, found: str, expected: str, fix: str) -> None:
        self.where, self.found, self.expected, self.fix = where, found, expected, fix
        self.history: list[dict[str, float]] = []
        self.kept = ""
        super().__init__(str(self))

    @property
    def title(self) -> str:
        """The cause as the name of a run's last state."""
        return f"{self.cause[0].upper()}{self.cause[1:]}"

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.expected}. Fix: {self.fix}"

    def __reduce__(self):
        return type(self), (self.where, self.found, self.expected, self.fix)

    def to_json(self) -> dict[str, Any]:
        """Return the error as plain JSON values, for other processes and reports."""
        return {
            "type": type(self).__name__,
            "where": self.where,
            "found": self.found,
            "expected": self.expected,
            "fix": self.fix,
        }


class BadRecipe(BurnishError):
    """The recipe contradicts itself, its data or its model."""

    cause = "bad recipe"
    in_recipe = True


class BadRequest(BurnishError):
    """What a person asked for cannot be done."""

    cause = "bad request"
    in_request = True


class BadData(BurnishError):
    """The data cannot be read, or cannot be trained on."""

    cause = "bad data"


class EmptyValue(BadData):
    """A row lacks a value that it must have: one of several such rows, perhaps."""


class MissingColumn(BadData):
    """A row, or a whole file, lacks a column."""


class BadModel(BurnishError):
    """The base model, its tokenizer or a baseline cannot be used."""

    cause = "bad model"
    in_recipe = True


class NotFound(BurnishError):
    """A source or revision does not exist."""

    cause = "not found"
    in_recipe = True


class NoAccess(BurnishError):
    """Credentials are missing or wrong, or lack a right."""

    cause = "no access"


class OutOfDeviceMemory(BurnishError):
    """The accelerator's memory is too small for the job."""

    cause = "out of GPU memory"


class OutOfHostMemory(BurnishError):
    """The program was killed, most often because the machine ran out of memory."""

    cause = "killed"
    retry_helps = True


class Preempted(BurnishError):
    """The run or its program was asked to stop (an eviction, a shutdown)."""

    cause = "preempted"
    retry_helps = True


class TimedOut(BurnishError):
    """A step took longer than its limit."""

    cause = "time-out"


class Hung(BurnishError):
    """A program stands still: it was stopped, or waits for something that does not come."""

    cause = "hung"
    retry_helps = True


class TrainingDiverged(BurnishError):
    """The loss became NaN or infinite."""

    cause = "training diverged"


class StorageFailed(BurnishError):
    """The store or a publishing target could not be read or written."""

    cause = "storage"
    retry_helps = True


class HubFailed(BurnishError):
    """The Hugging Face Hub gave an error or an unexpected answer."""

    cause = "Hub"
    retry_helps = True


class LlmJudgeFailed(BurnishError):
    """The LLM judge could not be reached, or its replies could not be understood."""

    cause = "LLM judge"
    retry_helps = True


class DamagedArtifact(BurnishError):
    """An artifact's files are missing or differ from its manifest.

    Attributes:
        kind: The artifact's kind.
        digest: The artifact's digest.
    """

    cause = "storage"
    retry_helps = True

    def __init__(self, kind: str, digest: str, found: str) -> None:
        self.kind, self.digest = kind, digest
        super().__init__(
            f"artifact {kind}/{digest[:12]}",
            found,
            "the files that its manifest lists",
            # No step makes the provenance of a release again: its run has ended.
            "run `burnish repair MODEL`, which restores what it finds elsewhere"
            if kind == "provenance"
            else "start the run again: the step that made it then runs again",
        )

    def __reduce__(self):
        return type(self), (self.kind, self.digest, self.found)

    def to_json(self) -> dict[str, Any]:
        """As for other errors, with the artifact's kind and digest."""
        return super().to_json() | {"kind": self.kind, "digest": self.digest}


class BaselineMoved(BurnishError):
    """Another release was published after the verdict."""

    cause = "gate"
    retry_helps = True


class PoolFailed(BurnishError):
    """A work pool's workers did not do what a run asked of them."""

    cause = "pool"
    retry_helps = True


class PoolChanged(PoolFailed):
    """A pool's worker is another machine than the run planned for."""


class PoolRunCancelled(PoolFailed):
    """A person cancelled the run of a pool's worker that this run waited for."""

    cause = "training cancelled"


class CodeFailed(BurnishError):
    """A program ended in a way that no other class describes."""


def retry_helps(state_name: str) -> bool:
    """Whether the cause that a failed run's state is named after may pass by itself."""
    named = [kind for kind in _subclasses(BurnishError) if kind.cause.lower() == state_name.lower()]
    return any(kind.retry_helps for kind in named)


def from_json(data: dict[str, Any]) -> BurnishError:
    """Rebuild an error that `BurnishError.to_json` described."""
    kinds = {cls.__name__: cls for cls in _subclasses(BurnishError)}
    cls = kinds.get(data["type"], CodeFailed)
    if cls is DamagedArtifact:
        return DamagedArtifact(data["kind"], data["digest"], data["found"])
    return cls(data["where"], data["found"], data["expected"], data["fix"])


def _subclasses(cls: type[BurnishError]) -> Iterator[type[BurnishError]]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)


def preempted(saved: str = "nothing was saved") -> Preempted:
    """Return the error of a program that was asked to stop.

    Args:
        saved: What the program saved, as a clause.
    """
    return Preempted(
        "program",
        f"a request to stop (SIGTERM); {saved}",
        "to run to its end",
        "start the run again: it continues from what was saved",
    )


def describe(problem: BaseException) -> BurnishError:
    """Return the typed error for any exception."""
    for error in _chain(problem):
        typed = _typed(error)
        if typed is not None:
            return typed
    return CodeFailed(
        _origin(problem),
        traceback.format_exception_only(problem)[-1].strip(),
        "no error",
        "this is a defect of the program or of a library: report it with the log",
    )


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        yield problem
        problem = problem.__cause__


# What torch says of code that mixes fp32 with the bf16 of autocast.
_NOT_IN_BF16 = ("cannot be converted to type c10::BFloat16", "mixed dtype (CPU)")


def _typed(error: BaseException) -> BurnishError | None:
    if isinstance(error, BurnishError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return preempted()
    text = str(error)
    # Only if torch is loaded: a program without it must not import it for its error class.
    torch = sys.modules.get("torch")
    if (torch and isinstance(error, torch.OutOfMemoryError)) or "CUDA error: out of memory" in text:
        return OutOfDeviceMemory(
            "training.batch_size",
            text.splitlines()[0] if text else "no free device memory",
            "batches that fit into the accelerator's memory",
            "lower the batch size or training.max_length, or set quantization: nf4",
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in text:
        return OutOfHostMemory(
            "host memory",
            text.splitlines()[0] if text else "no free memory",
            "enough memory for the model and its batches",
            "give the worker more memory, or lower the batch size or training.max_length",
        )
    if any(sign in text for sign in _NOT_IN_BF16):
        return BadRecipe(
            "training.precision",
            f"bf16, in which this architecture cannot compute ({text.splitlines()[0]})",
            "a precision that it computes in",
            "set training.precision to fp32",
        )
    # Errors of Rust and C++ libraries have the errno in their text only.
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        where = str(getattr(error, "filename", None) or "the worker's disk")
        return StorageFailed(
            where,
            "no disk space",
            "room for what is being written",
            "free some space on that disk",
        )
    return None


def _origin(problem: BaseException) -> str:
    frames = traceback.extract_tb(problem.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "program"
