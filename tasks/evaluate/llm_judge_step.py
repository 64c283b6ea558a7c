"""The LLM judge step: compare the candidate's answers with the baseline's.

It runs in the flow's own process, because programs have neither network access nor credentials.
Replies cost money, so verdicts are cached as they arrive, and a retry asks only for missing ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.errors import LlmJudgeFailed
from tasks.contracts.recipe_evaluation import LlmJudgeRecipe
from tasks.contracts.results import Comparisons
from tasks.evaluate.llm_judge_client import WHERE, ChatClient, NoReply
from tasks.load.dataset import texts_by_hash
from tasks.load.splits import TEST
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.substep_cache import SubstepCache
from tasks.storage.store import open_store

UNREADABLE_SHARE = 0.1
"""Maximum share of pairs without a readable verdict; beyond it the step fails."""
_MAX_REPLY_CHARACTERS = 8_000


class LlmJudgeInputs(Contract):
    """The answers to compare, and the LLM judge.

    Attributes:
        candidate, baseline: Artifacts of their scores, with their answers.
        test_digest: The test set's identity.
        dataset: The artifact that holds the test set's texts.
        llm_judge: The recipe's `evaluation.llm_judge`.
    """

    cache_key_excludes = frozenset({"dataset"})

    candidate: Artifact
    baseline: Artifact
    test_digest: str
    dataset: Artifact
    llm_judge: LlmJudgeRecipe


@step(
    "llm-judge",
    result=Comparisons,
    code=("tasks.evaluate.llm_judge_step", "tasks.evaluate.llm_judge_verdicts"),
    libraries=(),
)
def ask_llm_judge(inputs: LlmJudgeInputs, context: RunContext) -> Comparisons:
    """Ask the LLM judge about each pair of answers, in both orders.

    Raises:
        NoAccess: The server refuses the key.
        NotFound: The server does not have the model.
        LlmJudgeFailed: The server does not reply, or too many replies have no verdict.
    """
    import pyarrow.parquet as pq

    from tasks.evaluate import llm_judge_verdicts

    store = open_store(context.store)
    candidate, baseline = (
        pq.read_table(store.file(scores, "scores.parquet"))
        for scores in (inputs.candidate, inputs.baseline)
    )
    texts = texts_by_hash(context, inputs.dataset, TEST)
    pairs = llm_judge_verdicts.answer_pairs(
        candidate, baseline, texts, inputs.llm_judge.max_examples
    )
    replies = _ask_about(pairs, inputs.llm_judge, _ReplyCache(inputs.llm_judge, context))
    verdicts = [tuple(map(llm_judge_verdicts.parse_verdict, both)) for both in replies]
    counts = llm_judge_verdicts.count_outcomes(verdicts)
    _refuse_unreadable(inputs.llm_judge, replies, verdicts, counts["unreadable"])
    values = [llm_judge_verdicts.preference(*both) for both in verdicts]
    with store.scratch() as scratch:
        out = scratch / "comparisons"
        out.mkdir()
        _write(out / "comparisons.parquet", pairs, replies, verdicts, values)
        return Comparisons(
            artifact=store.put("comparisons", out),
            llm_judge=inputs.llm_judge.model,
            preferred=sum(values) / max(len(values), 1),
            **counts,
        )


class _ReplyCache:
    """The judge's earlier replies, also from interrupted runs.

    Only replies with a verdict are stored; a retry asks again for the others.
    """

    def __init__(self, judge: LlmJudgeRecipe, context: RunContext) -> None:
        self._judge = {"url": judge.url, "model": judge.model}
        self._substeps = SubstepCache(
            "llm-judge-reply",
            "llm-judge",
            context,
            code=("tasks.evaluate.llm_judge_client",),
            libraries=(),
        )

    def get(self, prompt: str) -> str | None:
        """The reply to a filled prompt; None if there is none."""
        record = self._substeps.get(self._key(prompt))
        return record and record["reply"]

    def put(self, prompt: str, reply: str) -> None:
        """Store a reply if it has a verdict."""
        from tasks.evaluate.llm_judge_verdicts import UNREADABLE, parse_verdict

        if parse_verdict(reply) != UNREADABLE:
            self._substeps.put(self._key(prompt), {"reply": reply})

    def _key(self, prompt: str) -> str:
        return self._substeps.key({**self._judge, "prompt": prompt})


def _ask_about(
    pairs: list[Any], judge: LlmJudgeRecipe, cache: _ReplyCache
) -> list[tuple[str, str]]:
    """The judge's replies on each pair, in the given order and swapped.

    A missing reply is replaced by the reason why it is missing.
    """
    from tasks.evaluate import llm_judge_verdicts

    template = judge.prompt or llm_judge_verdicts.PROMPT
    # Equal answers are a tie without asking.
    differing = [pair for pair in pairs if pair.candidate != pair.baseline]
    prompts = [
        llm_judge_verdicts.fill_prompt(template, pair, swapped)
        for pair in differing
        for swapped in (False, True)
    ]
    run_logger().info("%d prompts for the LLM judge %s, two per pair", len(prompts), judge.model)
    with ChatClient(judge) as client, ThreadPoolExecutor(judge.parallel) as pool:

        def ask(prompt: str) -> str:
            reply = cache.get(prompt)
            if reply is not None:
                return reply
            try:
                reply = client.ask(prompt)
            except NoReply as error:
                return str(error)
            cache.put(prompt, reply)
            return reply

        futures = [pool.submit(ask, prompt) for prompt in prompts]
        try:
            replies = iter([future.result() for future in futures])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [_replies_on(pair, replies) for pair in pairs]


def _replies_on(pair: Any, replies: Iterator[str]) -> tuple[str, str]:
    if pair.candidate == pair.baseline:
        return "Not asked: the answers are equal. [[C]]", "Not asked: the answers are equal. [[C]]"
    return next(replies), next(replies)


def _refuse_unreadable(
    judge: LlmJudgeRecipe, replies: list[tuple[str, str]], verdicts: list, unreadable: int
) -> None:
    from tasks.evaluate.llm_judge_verdicts import UNREADABLE

    if unreadable <= UNREADABLE_SHARE * len(replies):
        return
    example = next(
        reply
        for both, found in zip(replies, verdicts, strict=True)
        for reply, verdict in zip(both, found, strict=True)
        if verdict == UNREADABLE
    )
    raise LlmJudgeFailed(
        f"{WHERE} {judge.url}",
        f"no verdict on {unreadable} of {len(replies)} pairs, such as {example[-200:]!r}",
        f"[[A]], [[B]] or [[C]] in the replies on at least {1 - UNREADABLE_SHARE:.0%} of the pairs",
        "choose a model that follows the prompt, or correct evaluation.llm_judge.prompt",
    )


def _write(
    path: Path,
    pairs: list,
    replies: list[tuple[str, str]],
    verdicts: list[tuple[str, str]],
    values: list[float],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "hash_hi": pa.array([pair.key[0] for pair in pairs], pa.uint64()),
        "hash_lo": pa.array([pair.key[1] for pair in pairs], pa.uint64()),
        "candidate": [pair.candidate for pair in pairs],
        "baseline": [pair.baseline for pair in pairs],
        "preferred": pa.array(values, pa.float64()),
    }
    for number, name in enumerate(("first", "second")):
        columns[f"{name}_verdict"] = [both[number] for both in verdicts]
        columns[f"{name}_reply"] = [both[number][-_MAX_REPLY_CHARACTERS:] for both in replies]
    pq.write_table(pa.table(columns), path, compression="zstd")
