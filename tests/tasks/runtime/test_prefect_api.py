"""Calls to Prefect's API that neither block a run nor fail it."""

import contextvars
import threading
import time

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.runtime.prefect_api import BackgroundCall, brief_client


class TestBriefClient:
    def test_gives_up_at_once_if_nothing_answers(self):
        started = time.monotonic()
        with (
            temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
            brief_client() as client,
            pytest.raises(httpx.ConnectError),
        ):
            client.read_flow_runs()
        assert time.monotonic() - started < 10

    def test_reads_from_a_server(self, prefect_env):
        with brief_client() as client:
            assert client.hello().status_code == 200


class TestBackgroundCall:
    def test_does_not_wait(self):
        release, calls = threading.Event(), BackgroundCall()
        calls.submit(release.wait)
        release.set()
        calls.flush(10)

    def test_skips_calls_that_a_newer_one_replaced(self):
        started, release, made = threading.Event(), threading.Event(), []
        calls = BackgroundCall()

        def first():
            started.set()
            release.wait()

        calls.submit(first)
        started.wait()
        calls.submit(lambda: made.append("old"))
        calls.submit(lambda: made.append("new"))
        release.set()
        calls.flush(10)
        assert made == ["new"]

    def test_flush_gives_up_after_its_time(self):
        release, calls = threading.Event(), BackgroundCall()
        calls.submit(release.wait)
        calls.flush(0.01)
        release.set()
        calls.flush(10)

    def test_calls_see_the_context_of_who_submitted_them(self):
        variable, seen = contextvars.ContextVar("variable"), []
        variable.set("here")
        calls = BackgroundCall()
        calls.submit(lambda: seen.append(variable.get()))
        calls.flush(10)
        assert seen == ["here"]

    def test_goes_on_after_its_thread_has_ended(self):
        made, calls = [], BackgroundCall()
        for number in range(3):
            calls.submit(lambda number=number: made.append(number))
            calls.flush(10)
        assert made == [0, 1, 2]
