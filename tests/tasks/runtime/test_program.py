"""The program's side: its messages, the types of its errors, and how it ends."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tasks.contracts.errors import (
    BadModel,
    CodeFailed,
    OutOfDeviceMemory,
    OutOfHostMemory,
    Preempted,
    StorageFailed,
    describe,
)
from tasks.runtime.program import PARENT_GONE, Reporter
from tasks.runtime.run_program import ROOT

SOURCE = """
import os, time
from tests.tasks.runtime.programs import run

def main(job, reporter):
    reporter.progress(always=True, here=True)
    {body}

run(main, graceful={graceful})
"""


@pytest.fixture
def start(tmp_path):
    """Starts a program as a process, and kills it after the test."""
    started = []

    def start(body, graceful=False):
        (tmp_path / "program.py").write_text(SOURCE.format(body=body, graceful=graceful))
        (tmp_path / "job.json").write_text('{"values": {}}')
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "job.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert json.loads(process.stdout.readline()) == {"event": "progress", "here": True}
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


class TestExit:
    def test_comes_with_the_end_of_standard_input(self, start):
        process = start("time.sleep(3600)")
        process.stdin.close()
        assert process.wait(60) == PARENT_GONE
        assert b"the parent process is gone" in process.stderr.read()

    def test_status_is_0_after_a_result(self, start):
        process = start("return {'a': 1}")
        assert json.loads(process.stdout.readline()) == {
            "event": "result",
            "result": {"values": {"a": 1}},
        }
        assert process.wait(60) == 0

    def test_status_is_1_after_an_error_with_the_traceback_on_standard_error(self, start):
        process = start("raise ValueError('oops')")
        line = json.loads(process.stdout.readline())
        assert line["event"] == "error"
        assert line["error"]["type"] == "CodeFailed"
        assert line["error"]["found"] == "ValueError: oops"
        assert process.wait(60) == 1
        assert b"Traceback" in process.stderr.read()

    def test_does_not_wait_for_hanging_threads(self, start):
        body = (
            "import threading; threading.Thread(target=time.sleep, args=(3600,)).start(); return {}"
        )
        assert start(body).wait(60) == 0

    def test_comes_at_once_after_a_request_to_stop(self, start):
        process = start("time.sleep(3600)")
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.stdout.readline())["error"]["type"] == "Preempted"
        assert process.wait(60) == 1

    def test_waits_until_a_graceful_program_has_finished(self, start):
        body = "\n    ".join(
            [
                "while not reporter.stopping: time.sleep(0.01)",
                "return {'saved': True}",
            ]
        )
        process = start(body, graceful=True)
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.stdout.readline())["result"] == {"values": {"saved": True}}

    def test_without_a_job_shows_the_usage(self, tmp_path):
        (tmp_path / "program.py").write_text(SOURCE.format(body="return {}", graceful=False))
        done = subprocess.run(
            [sys.executable, str(tmp_path / "program.py")],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
        )
        assert done.returncode == 2
        assert b"usage" in done.stderr


class TestErrors:
    @pytest.mark.parametrize(
        ("raised", "expected"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), OutOfDeviceMemory),
            (RuntimeError("CUDA error: out of memory"), OutOfDeviceMemory),
            (MemoryError(), OutOfHostMemory),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), OutOfHostMemory),
            (OSError(errno.ENOSPC, "No space left on device"), StorageFailed),
            (RuntimeError("I/O error: No space left on device (os error 28)"), StorageFailed),
            (KeyboardInterrupt(), Preempted),
            (BadModel("a", "b", "c", "d"), BadModel),
            (OSError(errno.EACCES, "Permission denied"), CodeFailed),
            (RuntimeError("anything else"), CodeFailed),
        ],
    )
    def test_have_the_type_of_their_cause(self, raised, expected):
        assert type(describe(raised)) is expected

    def test_have_the_type_of_the_error_that_they_wrap(self):
        try:
            try:
                raise MemoryError
            except MemoryError as inner:
                raise RuntimeError("loading failed") from inner
        except RuntimeError as outer:
            assert type(describe(outer)) is OutOfHostMemory

    def test_name_the_file_on_a_full_disk(self):
        error = describe(OSError(errno.ENOSPC, "No space left on device", "/scratch/x"))
        assert (error.where, error.found) == ("/scratch/x", "no disk space")


class TestProgress:
    @pytest.fixture
    def pipe(self):
        ends = os.pipe()
        yield ends
        for end in ends:
            os.close(end)

    def test_is_sent_at_most_twice_a_second_unless_forced(self, pipe, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        reporter = Reporter(pipe[1])
        sent = [reporter.progress(step=step) for step in range(5)]
        assert sent == [True, False, False, False, False]
        assert reporter.progress(always=True, step=5)
        now[0] += 0.5
        assert reporter.progress(step=6)

    def test_is_valid_json_even_with_nan(self, pipe):
        Reporter(pipe[1]).progress(loss=float("nan"))
        assert json.loads(os.read(pipe[0], 1000)) == {"event": "progress", "loss": None}
