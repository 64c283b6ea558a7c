"""Compare: let a judge say which answers are better, the candidate's or the baseline's.

It runs in the flow's own process: programs have neither network nor credentials. Answers cost
money: each verdict is kept as soon as it is given, and a retry asks only for those that are
missing.
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
from tasks.evaluate.llm_judge_client import WHERE, ChatClient, Unanswered
from tasks.load.dataset import texts_by_hash
from tasks.load.splits import TEST
from tasks.runtime.cache import step
from tasks.runtime.context import RunContext
from tasks.runtime.logs import run_logger
from tasks.runtime.substep_cache import SubstepCache
from tasks.storage.store import open_store

UNREADABLE_SHARE = 0.1
"""Of the pairs; where more cannot be read, nothing is taken from the others, either."""
_MOST_KEPT = 8_000


class LlmJudgeInputs(Contract):
    """Whose answers, and who judges.

    Attributes:
        candidate, baseline: Artifacts of their scores, with what they wrote.
        test_digest: The test set's identity.
        dataset: Where its texts are.
        llm_judge: As the recipe says.
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
    """Ask the judge about each pair, in either order.

    Raises:
        NoAccess, NotFound: The server refuses the key, or has no such model.
        LlmJudgeFailed: It does not answer, or in words that cannot be read.
    """
    import pyarrow.parquet as pq

    from tasks.evaluate import llm_judge_verdicts

    store = open_store(context.store)
    candidate, baseline = (
        pq.read_table(store.file(scores, "scores.parquet"))
        for scores in (inputs.candidate, inputs.baseline)
    )
    texts = texts_by_hash(context, inputs.dataset, TEST)
    pairs = llm_judge_verdicts.pairs_of(candidate, baseline, texts, inputs.llm_judge.max_examples)
    asked = _ask(inputs.llm_judge, pairs, _Kept(inputs.llm_judge, context))
    verdicts = [tuple(llm_judge_verdicts.verdict_in(said) for said in both) for both in asked]
    counts = llm_judge_verdicts.counted(verdicts)
    _refuse_unreadable(inputs.llm_judge, asked, verdicts, counts["unreadable"])
    values = [llm_judge_verdicts.preferred(*both) for both in verdicts]
    with store.scratch() as scratch:
        out = scratch / "comparisons"
        out.mkdir()
        _write(out / "comparisons.parquet", pairs, asked, verdicts, values)
        return Comparisons(
            artifact=store.put("comparisons", out),
            llm_judge=inputs.llm_judge.model,
            preferred=sum(values) / max(len(values), 1),
            **counts,
        )


class _Kept:
    """What this judge said before: in this run, or in one that broke off.

    Only what has a verdict is kept; about the rest a retry asks again.
    """

    def __init__(self, judge: LlmJudgeRecipe, context: RunContext) -> None:
        self._judge = {"url": judge.url, "model": judge.model}
        self._substeps = SubstepCache(
            "verdict-said",
            "llm-judge",
            context,
            code=("tasks.evaluate.llm_judge_client",),
            libraries=(),
        )

    def get(self, question: str) -> str | None:
        """The answer to a question, which has the prompt and both answers in it."""
        record = self._substeps.get(self._key(question))
        return record and record["said"]

    def put(self, question: str, said: str) -> None:
        """Keep an answer."""
        from tasks.evaluate.llm_judge_verdicts import UNREADABLE, verdict_in

        if verdict_in(said) != UNREADABLE:
            self._substeps.put(self._key(question), {"said": said})

    def _key(self, question: str) -> str:
        return self._substeps.key({**self._judge, "question": question})


def _ask(judge: LlmJudgeRecipe, pairs: list, kept: _Kept) -> list[tuple[str, str]]:
    """What the judge said of each pair, first and with the answers swapped; `Unanswered` reasons
    in the place of answers that there were none of."""
    from tasks.evaluate import llm_judge_verdicts

    prompt = judge.prompt or llm_judge_verdicts.PROMPT
    # Equal answers are a tie whoever judges.
    differing = [pair for pair in pairs if pair.candidate != pair.baseline]
    questions = [
        llm_judge_verdicts.filled(prompt, pair, swapped)
        for pair in differing
        for swapped in (False, True)
    ]
    run_logger().info("%d questions for the judge %s, two a pair", len(questions), judge.model)
    with ChatClient(judge) as client, ThreadPoolExecutor(judge.parallel) as pool:

        def ask(question: str) -> str:
            said = kept.get(question)
            if said is not None:
                return said
            try:
                said = client.ask(question)
            except Unanswered as error:
                return str(error)
            kept.put(question, said)
            return said

        futures = [pool.submit(ask, question) for question in questions]
        try:
            said = iter([future.result() for future in futures])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [_said_of(pair, said) for pair in pairs]


def _said_of(pair: Any, said: Iterator[str]) -> tuple[str, str]:
    if pair.candidate == pair.baseline:
        return "Not asked: the answers are equal. [[C]]", "Not asked: the answers are equal. [[C]]"
    return next(said), next(said)


def _refuse_unreadable(
    judge: LlmJudgeRecipe, asked: list[tuple[str, str]], verdicts: list, unreadable: int
) -> None:
    from tasks.evaluate.llm_judge_verdicts import UNREADABLE

    if unreadable <= UNREADABLE_SHARE * len(asked):
        return
    example = next(
        said
        for both, found in zip(asked, verdicts, strict=True)
        for said, verdict in zip(both, found, strict=True)
        if verdict == UNREADABLE
    )
    raise LlmJudgeFailed(
        f"{WHERE} {judge.url}",
        f"no verdict on {unreadable} of {len(asked)} pairs, such as {example[-200:]!r}",
        f"[[A]], [[B]] or [[C]] at the end of at least {1 - UNREADABLE_SHARE:.0%} of the answers",
        "choose a model that follows the prompt, or correct evaluation.llm_judge.prompt",
    )


def _write(
    path: Path,
    pairs: list,
    asked: list[tuple[str, str]],
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
    for place, name in enumerate(("first", "second")):
        columns[f"{name}_verdict"] = [both[place] for both in verdicts]
        columns[f"{name}_said"] = [both[place][-_MOST_KEPT:] for both in asked]
    pq.write_table(pa.table(columns), path, compression="zstd")
