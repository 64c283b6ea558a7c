"""The client of the LLM judge: servers that fail, and the API key that stays secret."""

from __future__ import annotations

import json
import logging
import pickle
import time

import pytest

from tasks.contracts.errors import LlmJudgeFailed, NoAccess, NotFound
from tasks.evaluate import llm_judge_client
from tests.tasks.evaluate.samples import JUDGE_KEY


class TestFailingServer:
    def test_busy_server_is_asked_again(self, judged, server):
        refusals = ((429, {"Retry-After": "0"}), (503, {}), (500, {}))
        server.fail = lambda number: refusals[number % 4] if number % 4 < 3 else None
        result, _ = judged(max_examples=3, parallel=1)
        assert (result.wins, result.losses) == (1, 1)
        assert len(server.requests) == 4 * 4

    def test_server_that_never_replies_fails_the_step(self, judged, server):
        server.fail = lambda number: (503, {})
        with pytest.raises(LlmJudgeFailed, match=r"evaluation\.llm_judge http://127.*503"):
            judged(max_examples=1)
        assert len(server.requests) >= llm_judge_client.RETRIES

    def test_slow_server_fails_the_step(self, judged, server, monkeypatch):
        monkeypatch.setattr(llm_judge_client, "RETRIES", 1)
        server.wait = 5
        began = time.monotonic()
        with pytest.raises(LlmJudgeFailed, match="the reply timed out"):
            judged(max_examples=1, time_out_seconds=0.2)
        assert time.monotonic() - began < 4

    def test_unreachable_server_fails_the_step(self, judged):
        with pytest.raises(LlmJudgeFailed, match="ConnectionError"):
            judged(max_examples=1, url="http://127.0.0.1:9/v1")

    def test_redirects_are_not_followed(self, judged, server):
        server.fail = lambda number: (302, {"Location": f"{server.url}/elsewhere"})
        with pytest.raises(LlmJudgeFailed, match="302"):
            judged(max_examples=1)
        assert {each["path"] for each in server.requests} == {"/v1/chat/completions"}

    def test_missing_model_is_reported(self, judged, server):
        server.fail = lambda number: (404, {})
        with pytest.raises(NotFound, match="wise"):
            judged(max_examples=1)


class TestApiKey:
    def test_missing_key_is_reported_with_its_variable(self, judged, monkeypatch):
        monkeypatch.delenv("JUDGE_KEY")
        with pytest.raises(NoAccess, match="JUDGE_KEY"):
            judged()

    @pytest.mark.parametrize("status", [401, 403])
    def test_refused_key_is_not_in_the_error(self, judged, server, status):
        server.fail = lambda number: (status, {})
        with pytest.raises(NoAccess, match=str(status)) as caught:
            judged(max_examples=1)
        self.is_nowhere(caught.value)

    @pytest.mark.parametrize("status", [302, 404, 503])
    def test_key_is_not_in_errors_even_if_the_server_repeats_it(self, judged, server, status):
        server.fail = lambda number: (status, {})
        with pytest.raises((LlmJudgeFailed, NotFound)) as caught:
            judged(max_examples=1)
        assert "***" in str(caught.value)
        self.is_nowhere(caught.value)

    def test_key_is_not_in_logs_and_results(self, judged, server, caplog):
        caplog.set_level(logging.DEBUG)
        server.rule = lambda first, second: f"Authorization: Bearer {JUDGE_KEY} [[A]]"
        server.fail = lambda number: (400, {}) if number == 0 else None
        result, table = judged(parallel=1)
        assert JUDGE_KEY not in caplog.text
        assert JUDGE_KEY not in result.model_dump_json()
        assert JUDGE_KEY not in json.dumps(table.to_pylist())
        assert "***" in table["first_reply"][0].as_py()

    @staticmethod
    def is_nowhere(error):
        assert JUDGE_KEY not in str(error) and JUDGE_KEY.encode() not in pickle.dumps(error)
        seen = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        assert seen is None
