"""What passes by itself is tried again; what does not fails at once."""

import os
import signal
import time

import pytest
from prefect.exceptions import TerminationSignal

from tasks.contracts.errors import (
    BadData,
    DamagedArtifact,
    HubFailed,
    OutOfHostMemory,
    StorageFailed,
)
from tasks.runtime import retry
from tasks.runtime.retry import with_retries
from tasks.runtime.termination import watch_sigterm

PARTS = ("there", "this", "that", "do so")


class Work:
    """Fails so many times, then succeeds."""

    def __init__(self, error, failures):
        self.error, self.failures, self.calls = error, failures, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv(retry.VARIABLE, "0.1,0.2")


class TestFailure:
    @pytest.mark.parametrize("error", [StorageFailed, HubFailed, OutOfHostMemory])
    def test_that_passes_is_tried_again(self, error):
        work = Work(error(*PARTS), failures=2)
        assert with_retries("work", work) == "done"
        assert work.calls == 3

    def test_that_lasts_is_raised_after_the_last_try(self):
        work = Work(StorageFailed(*PARTS), failures=9)
        with pytest.raises(StorageFailed):
            with_retries("work", work)
        assert work.calls == 3

    @pytest.mark.parametrize(
        "error", [BadData(*PARTS), DamagedArtifact("model", "abc", "no file"), ValueError()]
    )
    def test_that_does_not_pass_is_raised_at_once(self, error):
        work = Work(error, failures=1)
        with pytest.raises(type(error)):
            with_retries("work", work)
        assert work.calls == 1

    def test_is_not_tried_again_where_that_is_switched_off(self, monkeypatch):
        monkeypatch.setenv(retry.VARIABLE, "")
        work = Work(StorageFailed(*PARTS), failures=1)
        with pytest.raises(StorageFailed):
            with_retries("work", work)

    def test_wait_ends_with_a_request_to_stop(self, monkeypatch):
        monkeypatch.setenv(retry.VARIABLE, "300")
        before = signal.signal(signal.SIGTERM, lambda *_: None)

        def fail():
            os.kill(os.getpid(), signal.SIGTERM)
            raise StorageFailed(*PARTS)

        began = time.monotonic()
        try:
            with watch_sigterm(), pytest.raises(TerminationSignal):
                with_retries("work", fail)
        finally:
            signal.signal(signal.SIGTERM, before)
        assert time.monotonic() - began < 60
