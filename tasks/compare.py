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

from tasks.asking import WHERE, Asker, Unanswered
from tasks.cache import Room, step
from tasks.contracts.artifact import Artifact, Comparisons
from tasks.contracts.base import Contract
from tasks.contracts.evaluation import JudgeRecipe
from tasks.data.examples import TEST, texts_by_hash
from tasks.errors import JudgeFailed
from tasks.memo import Memo
from tasks.report import run_logger
from tasks.store import open_store

UNREADABLE_SHARE = 0.1
"""Of the pairs; where more cannot be read, nothing is taken from the others, either."""
_MOST_KEPT = 8_000


class CompareInputs(Contract):
    """Whose answers, and who judges.

    Attributes:
        candidate, baseline: Artifacts of their scores, with what they wrote.
        test_digest: The test set's identity.
        dataset: Where its texts are.
        judge: As the recipe says.
    """

    not_in_key = frozenset({"dataset"})

    candidate: Artifact
    baseline: Artifact
    test_digest: str
    dataset: Artifact
    judge: JudgeRecipe


@step(
    "compare",
    result=Comparisons,
    code=("tasks.compare", "tasks.judging.preferences"),
    libraries=(),
)
def compare(inputs: CompareInputs, room: Room) -> Comparisons:
    """Ask the judge about each pair, in either order.

    Raises:
        NoAccess, NotFound: The server refuses the key, or has no such model.
        JudgeFailed: It does not answer, or in words that cannot be read.
    """
    import pyarrow.parquet as pq

    from tasks.judging import preferences

    store = open_store(room.store)
    candidate, baseline = (
        pq.read_table(store.file(scores, "scores.parquet"))
        for scores in (inputs.candidate, inputs.baseline)
    )
    texts = texts_by_hash(room, inputs.dataset, TEST)
    pairs = preferences.pairs_of(candidate, baseline, texts, inputs.judge.max_examples)
    asked = _ask(inputs.judge, pairs, _Kept(inputs.judge, room))
    verdicts = [tuple(preferences.verdict_in(said) for said in both) for both in asked]
    counts = preferences.counted(verdicts)
    _refuse_unreadable(inputs.judge, asked, verdicts, counts["unreadable"])
    values = [preferences.preferred(*both) for both in verdicts]
    with store.scratch() as scratch:
        out = scratch / "comparisons"
        out.mkdir()
        _write(out / "comparisons.parquet", pairs, asked, verdicts, values)
        return Comparisons(
            artifact=store.put("comparisons", out),
            judge=inputs.judge.model,
            preferred=sum(values) / max(len(values), 1),
            **counts,
        )


class _Kept:
    """What this judge said before: in this run, or in one that broke off.

    Only what has a verdict is kept; about the rest a retry asks again.
    """

    def __init__(self, judge: JudgeRecipe, room: Room) -> None:
        self._judge = {"url": judge.url, "model": judge.model}
        self._memo = Memo("verdict-said", "compare", room, code=("tasks.asking",), libraries=())

    def get(self, question: str) -> str | None:
        """The answer to a question, which has the prompt and both answers in it."""
        record = self._memo.get(self._key(question))
        return record and record["said"]

    def put(self, question: str, said: str) -> None:
        """Keep an answer."""
        from tasks.judging.preferences import UNREADABLE, verdict_in

        if verdict_in(said) != UNREADABLE:
            self._memo.put(self._key(question), {"said": said})

    def _key(self, question: str) -> str:
        return self._memo.key({**self._judge, "question": question})


def _ask(judge: JudgeRecipe, pairs: list, kept: _Kept) -> list[tuple[str, str]]:
    """What the judge said of each pair, first and with the answers swapped; `Unanswered` reasons
    in the place of answers that there were none of."""
    from tasks.judging import preferences

    prompt = judge.prompt or preferences.PROMPT
    # Equal answers are a tie whoever judges.
    differing = [pair for pair in pairs if pair.candidate != pair.baseline]
    questions = [
        preferences.filled(prompt, pair, swapped) for pair in differing for swapped in (False, True)
    ]
    run_logger().info("%d questions for the judge %s, two a pair", len(questions), judge.model)
    with Asker(judge) as asker, ThreadPoolExecutor(judge.parallel) as pool:

        def ask(question: str) -> str:
            said = kept.get(question)
            if said is not None:
                return said
            try:
                said = asker.ask(question)
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
    judge: JudgeRecipe, asked: list[tuple[str, str]], verdicts: list, unreadable: int
) -> None:
    from tasks.judging.preferences import UNREADABLE

    if unreadable <= UNREADABLE_SHARE * len(asked):
        return
    example = next(
        said
        for both, found in zip(asked, verdicts, strict=True)
        for said, verdict in zip(both, found, strict=True)
        if verdict == UNREADABLE
    )
    raise JudgeFailed(
        f"{WHERE} {judge.url}",
        f"no verdict on {unreadable} of {len(asked)} pairs, such as {example[-200:]!r}",
        f"[[A]], [[B]] or [[C]] at the end of at least {1 - UNREADABLE_SHARE:.0%} of the answers",
        "choose a model that follows the prompt, or correct evaluation.judge.prompt",
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
