"""A request to stop is found even if its exception was lost."""

import os
import signal
import threading

import pytest
from prefect.exceptions import TerminationSignal

from tasks.runtime.termination import check_sigterm, watch_sigterm


@pytest.fixture
def lost():
    """A handler from whose exception nothing is left, as in a finalizer."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


class TestWatchSigterm:
    def test_finds_a_request_whose_exception_was_lost(self, lost):
        with watch_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(TerminationSignal):
                check_sigterm()
            check_sigterm()  # Each request is found once.

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_finds_one_whose_exception_was_dropped_by_a_finalizer(self):
        class Finalized:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)

        def stop(*_):
            raise TerminationSignal(signal=signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, stop)
        try:
            with watch_sigterm():
                Finalized()  # Its finalizer runs here, and the exception is only printed.
                with pytest.raises(TerminationSignal):
                    check_sigterm()
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_leaves_other_signals_alone(self):
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            with watch_sigterm():
                os.kill(os.getpid(), signal.SIGUSR1)
                check_sigterm()
        finally:
            signal.signal(signal.SIGUSR1, before)

    def test_ends_with_its_block(self, lost):
        with watch_sigterm():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        check_sigterm()

    def test_keeps_the_handler_so_that_prefect_recognizes_its_own(self, lost):
        handler = signal.getsignal(signal.SIGTERM)
        with watch_sigterm():
            assert signal.getsignal(signal.SIGTERM) is handler

    def test_does_not_take_a_request_to_a_forked_child_for_its_own(self, lost):
        with watch_sigterm():
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            os.waitpid(child, 0)
            check_sigterm()

    def test_does_nothing_in_another_thread(self):
        def work():
            with watch_sigterm():
                check_sigterm()
            done.append(True)

        done = []
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert done == [True]
