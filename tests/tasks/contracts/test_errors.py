"""Errors: four parts that survive the way between processes, and a class for every exception."""

from __future__ import annotations

import errno
import pickle

import pytest
import torch

from tasks.contracts import errors
from tasks.contracts.errors import (
    BadData,
    BadRecipe,
    BurnishError,
    CodeFailed,
    DamagedArtifact,
    OutOfDeviceMemory,
    OutOfHostMemory,
    Preempted,
    StorageFailed,
    describe,
    from_json,
)

CLASSES = [cls for cls in BurnishError.__subclasses__() if cls is not DamagedArtifact]
PARTS = ("data.csv, row 3", "a label of 2 lines", "one line", "correct the row")


class TestClasses:
    @pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
    def test_survive_json_and_pickle(self, cls):
        error = cls(*PARTS)
        for copy in (from_json(error.to_json()), pickle.loads(pickle.dumps(error))):
            assert type(copy) is cls
            assert (copy.where, copy.found, copy.expected, copy.fix) == PARTS

    def test_a_damaged_artifact_keeps_its_parts(self):
        error = DamagedArtifact("model", "a" * 64, "no model.safetensors")
        copy = pickle.loads(pickle.dumps(error))
        assert (copy.kind, copy.digest, copy.found) == ("model", "a" * 64, "no model.safetensors")
        read = from_json(error.to_json())
        assert type(read) is DamagedArtifact and (read.kind, read.digest) == ("model", "a" * 64)

    def test_an_unknown_type_is_a_failure_of_the_code(self):
        data = BadData(*PARTS).to_json() | {"type": "FromANewerVersion"}
        assert type(from_json(data)) is CodeFailed

    def test_the_message_has_all_four_parts(self):
        assert str(BadData(*PARTS)) == (
            "data.csv, row 3: found a label of 2 lines; expected one line. Fix: correct the row"
        )

    def test_every_cause_has_one_word_for_the_report(self):
        assert all(cls.cause for cls in CLASSES)
        assert errors.CodeFailed.cause == "code"


def wrapped(error):
    """The error as the cause of another one."""
    outer = RuntimeError("it failed")
    outer.__cause__ = error
    return outer


class TestDescribe:
    @pytest.mark.parametrize(
        ("error", "cls"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), None),
            (RuntimeError("CUDA error: out of memory"), None),
            (MemoryError(), OutOfHostMemory),
            (
                RuntimeError("value cannot be converted to type c10::BFloat16 without overflow"),
                BadRecipe,
            ),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfHostMemory),
            (OSError(errno.ENOSPC, "No space left on device", "/scratch/x"), StorageFailed),
            (RuntimeError("I/O error: No space left on device (os error 28)"), StorageFailed),
            (KeyboardInterrupt(), Preempted),
            (BadData(*PARTS), BadData),
            (ZeroDivisionError("division by zero"), CodeFailed),
        ],
        ids=lambda value: getattr(value, "__name__", "") or type(value).__name__,
    )
    def test_finds_the_cause_of_an_exception_and_of_what_it_caused(self, error, cls):
        expected = cls or OutOfDeviceMemory
        assert type(describe(error)) is expected
        if expected is not CodeFailed:
            assert type(describe(wrapped(error))) is expected

    def test_a_full_disk_names_the_file(self):
        full = OSError(errno.ENOSPC, "No space left on device", "/scratch/x")
        assert describe(full).where == "/scratch/x"

    def test_a_defect_names_its_line(self):
        try:
            raise ZeroDivisionError("division by zero")
        except ZeroDivisionError as error:
            found = describe(error)
        assert found.where.startswith("test_errors.py:")
        assert found.found == "ZeroDivisionError: division by zero"
