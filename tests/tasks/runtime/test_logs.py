"""What is logged of a failure with a known cause."""

import logging

from prefect.exceptions import FailedRun

from tasks.runtime.logs import KnownCauses, run_logger


def record_of(message, error=None):
    exc_info = (type(error), error, None) if error else None
    return logging.LogRecord("prefect", logging.ERROR, "file", 1, message, (), exc_info)


class TestRunLogger:
    def test_outside_of_a_run_is_an_ordinary_logger(self):
        assert run_logger().name == "burnish"


class TestKnownCauses:
    def test_a_returned_failure_is_not_logged_again(self):
        assert not KnownCauses().filter(record_of("Task run failed with state Failed('…')"))

    def test_a_failed_run_is_logged_without_a_traceback(self):
        record = record_of("Finished in state Failed", FailedRun("bad data"))
        assert KnownCauses().filter(record)
        assert record.exc_info is None

    def test_a_defect_keeps_its_traceback(self):
        record = record_of("Encountered an exception", ValueError("oops"))
        assert KnownCauses().filter(record)
        assert record.exc_info[0] is ValueError
