"""The LLM judge step: prompts, verdicts and the cache of replies."""

from __future__ import annotations

import pytest

from tasks.contracts.errors import LlmJudgeFailed
from tasks.contracts.recipe_evaluation import LlmJudgeRecipe
from tasks.evaluate import llm_judge_client
from tasks.evaluate.llm_judge_step import LlmJudgeInputs, ask_llm_judge
from tests.doubles.llm_judge import likes_first
from tests.tasks.evaluate.samples import JUDGE_KEY


class TestFairJudge:
    def test_each_pair_is_compared_twice_and_counted(self, judged, server):
        result, table = judged()
        n = len(judged.keys)
        assert (result.wins, result.losses) == ((n + 2) // 3, (n + 1) // 3)
        assert result.wins + result.ties + result.losses == n
        assert (result.inconsistent, result.unreadable, result.llm_judge) == (0, 0, "wise")
        assert result.preferred == pytest.approx((result.wins + result.ties / 2) / n)
        assert table["preferred"].to_pylist()[:3] == [1.0, 0.0, 0.5]
        assert table["first_verdict"].to_pylist()[:3] == ["A", "B", "C"]
        assert table["second_verdict"].to_pylist()[:3] == ["B", "A", "C"]
        assert table["first_reply"][0].as_py() == "Length counts: [[A]]"
        assert list(zip(*(table[k].to_pylist() for k in ("hash_hi", "hash_lo")), strict=True)) == (
            judged.keys
        )

    def test_request_has_both_answers_and_temperature_0(self, judged, server):
        judged(max_examples=1)
        one, _ = server.requests
        assert {each["path"] for each in server.requests} == {"/v1/chat/completions"}
        assert one["body"]["temperature"] == 0 and one["body"]["model"] == "wise"
        assert one["headers"]["Authorization"] == f"Bearer {JUDGE_KEY}"
        question = judged.texts[judged.keys[0]]
        assert all(question in each and "tech" in each for each in server.questions)
        # The answers in either order.
        leads = [each.index("longer") < each.index("same\n") for each in server.questions]
        assert sorted(leads) == [False, True]

    def test_equal_answers_are_ties_without_a_request(self, judged, server):
        result, table = judged(ours=["same"] * len(judged.keys), theirs=["same"] * len(judged.keys))
        assert (result.ties, server.requests) == (len(judged.keys), [])
        assert "equal" in table["first_reply"][0].as_py()

    def test_key_is_optional(self, judged, server):
        judged(max_examples=1, api_key_env="")
        assert "Authorization" not in server.requests[0]["headers"]

    def test_prompt_can_be_replaced(self, judged, server):
        mark = "<answer_{}>\n{{answer_{}}}\n</answer_{}>"
        prompt = "Q {question}" + "".join(mark.format(*side * 3) for side in "ab")
        judged(max_examples=1, prompt=prompt)
        assert server.questions[0].startswith("Q ") and "reference" not in server.questions[0]


class TestBiasedJudge:
    def test_judge_that_always_prefers_the_first_answer_gives_ties(self, judged, server):
        server.rule = likes_first
        result, table = judged()
        assert (result.wins, result.losses, result.preferred) == (0, 0, 0.5)
        assert result.inconsistent == sum(v == "A" for v in table["first_verdict"].to_pylist())
        assert set(table["preferred"].to_pylist()) == {0.5}


class TestRepliesWithoutAVerdict:
    @pytest.mark.parametrize(
        "body",
        [
            b"<html>",
            b"[]",
            b'{"choices": []}',
            b'{"choices": [{"message": {"content": null}}]}',
            b'{"choices": [{"message": {"content": "A is better."}}]}',
        ],
    )
    def test_a_few_are_ties(self, judged, server, body):
        server.spoil = lambda number: body if number == 0 else None
        result, table = judged(parallel=1)
        assert result.unreadable == 1
        assert (table["first_verdict"][0].as_py(), table["preferred"][0].as_py()) == ("?", 0.5)

    def test_many_fail_the_step(self, judged, server):
        server.spoil = lambda number: b"{}" if number % 12 == 0 else None
        with pytest.raises(
            LlmJudgeFailed, match=r"no verdict on \d+ of \d+ pairs.*chat completion"
        ):
            judged(parallel=1)

    def test_refused_prompt_counts_as_one(self, judged, server):
        server.fail = lambda number: (400, {}) if number == 0 else None
        result, table = judged(parallel=1)
        assert result.unreadable == 1
        assert "400" in table["first_reply"][0].as_py()


class TestCachedReplies:
    @pytest.mark.parametrize("end", ["errors", "silence"])
    def test_verdicts_before_a_failure_are_reused(self, judged, server, monkeypatch, end):
        monkeypatch.setattr(llm_judge_client, "RETRIES", 0)
        questions = 2 * (len(judged.keys) - len(judged.keys) // 3)
        if end == "errors":
            server.fail = lambda number: (500, {}) if number >= 7 else None
        else:
            server.drop = lambda number: number >= 7
        with pytest.raises(LlmJudgeFailed, match="verdicts so far are kept"):
            judged(parallel=1)
        # The step stopped at the first failure.
        assert 7 < len(server.requests) < questions
        given = set(server.questions[:7])

        server.fail, server.drop = lambda number: None, lambda number: False
        server.requests.clear()
        result, table = judged(parallel=1)
        assert len(server.requests) == questions - 7
        assert not given & set(server.questions)
        # The result is that of a judge that never failed.
        server.requests.clear()
        whole, unbroken = judged(parallel=1, model="other")
        assert len(server.requests) == questions
        assert unbroken.equals(table)
        assert (result.wins, result.losses) == (whole.wins, whole.losses)

    def test_refresh_asks_again(self, judged, server):
        judged(max_examples=2)
        count = len(server.requests)
        judged(max_examples=2)
        assert len(server.requests) == count
        judged(max_examples=2, refresh=("llm-judge",))
        assert len(server.requests) == 2 * count

    def test_replies_without_a_verdict_are_not_cached(self, judged, server):
        server.spoil = lambda number: b"{}" if number in (0, 3) else None
        with pytest.raises(LlmJudgeFailed, match="no verdict"):
            judged(max_examples=2, parallel=1)
        result, _ = judged(max_examples=2, parallel=1)
        assert (len(server.requests), result.unreadable) == (6, 0)

    def test_key_is_not_in_the_cache(self, judged, server, tmp_path):
        server.rule = lambda first, second: f"Authorization: Bearer {JUDGE_KEY} [[A]]"
        judged(max_examples=2)
        kept = list((judged.store / "keys" / "llm-judge-reply").iterdir())
        assert len(kept) == 4
        assert not any(JUDGE_KEY in file.read_text() for file in kept)

    def test_step_key_ignores_the_connection_but_not_the_model(self, judged, judge_dataset, server):
        result, _ = judged(max_examples=2)
        inputs = {"candidate": result.artifact, "baseline": result.artifact}
        _, loaded = judge_dataset
        judge = LlmJudgeRecipe(url=server.url, model="wise")
        one = LlmJudgeInputs(**inputs, test_digest="t", dataset=loaded.artifact, llm_judge=judge)
        other = judge.model_copy(update={"api_key_env": "OTHER", "parallel": 1})
        assert ask_llm_judge.key(one) == ask_llm_judge.key(
            one.model_copy(update={"llm_judge": other})
        )
        wiser = judge.model_copy(update={"model": "wiser"})
        assert ask_llm_judge.key(one) != ask_llm_judge.key(
            one.model_copy(update={"llm_judge": wiser})
        )
