"""How likely a candidate that is as good as the earlier ones is to pass, before it is trained.

A baseline is deployed because it passed, perhaps by luck: then candidates that are as good as it
truly is look worse beside it, and theory, which knows nothing of that, promises too much. So
candidates are drawn from the scores of earlier ones: for each test row, the score of one of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy import stats

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.task_tables import LOWER_IS_BETTER, MACRO
from tasks.contracts.verdict import RuleOutcome
from tasks.evaluate.language_metrics import BY_TOKENS, column_of
from tasks.evaluate.score_table import keys_of, sorted_rows, values_of
from tasks.gate import phrasing, power
from tasks.gate.rules import POWER, alpha_of

DRAWS = 500
LEAST_EARLIER = 3
"""Earlier candidates without which nothing can be said of their scores."""


class PassChance(NamedTuple):
    """How likely a candidate is to pass.

    Attributes:
        chance: The probability.
        examples: Test rows now.
        needed: About how many rows it takes for 80%; 0 if no number would do, since the baseline
            is better than the earlier candidates by the margin.
        earlier: From how many earlier candidates' scores; 0: by theory.
    """

    chance: float
    examples: int
    needed: int
    earlier: int

    @property
    def sentence(self) -> str:
        """For the report."""
        who = f"as good as the last {self.earlier}" if self.earlier else "equally good"
        sentence = (
            f"A candidate that is {who} passes the gate with {phrasing.percent(self.chance)} "
            f"probability on {self.examples:,} test rows."
        )
        if self.chance >= POWER:
            return sentence
        if not self.needed:
            return f"{sentence} More rows would not help: the deployed release is better than them."
        return f"{sentence} {POWER:.0%} takes about {self.needed:,} rows, or a wider margin."


def pass_chance(
    earlier: list[pa.Table],
    baseline: pa.Table,
    anchor: pa.Table | None,
    rules: GateRecipe,
    examples: int,
) -> PassChance | None:
    """How likely a candidate as good as the earlier ones is to pass claim and anchor.

    By the normal approximation of the tests, on the rows that all tables share.

    Args:
        earlier: Score tables of earlier candidates.
        baseline: Of what is deployed.
        anchor: Of the anchor; None without one, or if it is the baseline.
        rules: The recipe's `gate`, with the metric resolved.
        examples: Test rows now.

    Returns:
        None if there are too few earlier candidates or shared rows to say, or the metric is no mean
        over rows.
    """
    # A classifier's accuracy is the share of its right answers.
    column = "correct" if "correct" in baseline.column_names else column_of(rules.metric)
    tables = [baseline, *([anchor] if anchor else []), *earlier]
    if rules.metric in MACRO or len(earlier) < LEAST_EARLIER:
        return None
    if any(column not in table.column_names for table in tables):
        return None
    tables = _shared_rows(tables)
    if tables[0].num_rows < min(rules.min_examples, examples):
        return None
    sign = -1.0 if rules.metric in LOWER_IS_BETTER else 1.0
    values = [sign * values_of(table, column).astype(float) for table in tables]
    weights = np.ones(tables[0].num_rows)
    if rules.metric in BY_TOKENS and "tokens" in tables[0].column_names:
        weights = values_of(tables[0], "tokens").astype(float)
    better = rules.claim == "better"
    opponents = [(values[0], 0.0 if better else rules.margin)]
    if anchor:
        opponents.append((values[1], rules.anchor_margin or rules.margin))
    candidates = np.stack(values[len(opponents) :])
    return _drawn(candidates, opponents, weights, rules, examples)


def chance_in_theory(claim: RuleOutcome, rules: GateRecipe, examples: int) -> PassChance | None:
    """As `pass_chance`, of a candidate that differs from what is deployed as that one did from its
    own baseline.

    Args:
        claim: The claim in the verdict on what is deployed.
        rules: The recipe's `gate`.
        examples: Test rows now.

    Returns:
        None if the claim is "better", or was not tested on right and wrong answers.
    """
    if rules.claim == "better" or claim.discordant is None or not claim.examples:
        return None
    discordance = max(sum(claim.discordant) / claim.examples, 1 / claim.examples)
    alpha = alpha_of(rules) / (rules.looks or 1)
    chance = power.equal_passes(examples, min(discordance, 1.0), rules.margin, alpha)
    error = (discordance / examples) ** 0.5
    needed = power.examples_for(examples, error, rules.margin, alpha, POWER)
    return PassChance(chance, examples, needed, 0)


def _drawn(
    candidates: np.ndarray,
    opponents: list[tuple[np.ndarray, float]],
    weights: np.ndarray,
    rules: GateRecipe,
    examples: int,
) -> PassChance:
    random, n = np.random.default_rng(0), candidates.shape[1]
    alpha = alpha_of(rules) / (rules.looks or 1)
    limit = float(stats.norm.isf(alpha))
    # Fewer rows are shared than there are: the error is that of all rows.
    share = weights / weights.sum()
    passed, needed = np.ones(DRAWS, bool), 1
    for opponent, margin in opponents:
        excess, error = np.empty(DRAWS), np.empty(DRAWS)
        for draw in range(DRAWS):
            drawn = candidates[random.integers(0, len(candidates), n), np.arange(n)]
            gains = drawn - opponent
            mean = float((share * gains).sum())
            excess[draw] = mean + margin
            error[draw] = np.sqrt((share**2 * (gains - mean) ** 2).sum() * n / examples)
        passed &= excess > limit * error
        typical = float((candidates.mean(axis=0) * share).sum() - (opponent * share).sum())
        room = typical + margin
        if room <= 0:
            needed = 0
        elif needed:
            spread = float(np.median(error))
            rows = power.examples_for(examples, spread, room, alpha, POWER)
            needed = max(needed, rows)
    return PassChance(float(passed.mean()), examples, needed, len(candidates))


def _shared_rows(tables: list[pa.Table]) -> list[pa.Table]:
    """The rows that all tables have, in one order."""
    packed = [np.ascontiguousarray(keys_of(table)).view("u8,u8").ravel() for table in tables]
    common = packed[0]
    for keys in packed[1:]:
        common = common[np.isin(common, keys)]
    return [
        sorted_rows(table.filter(pa.array(np.isin(keys, common))))
        for table, keys in zip(tables, packed, strict=True)
    ]
