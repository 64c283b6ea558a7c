"""How likely a candidate is to pass, before it is trained."""

import numpy as np
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.gate.pass_chance import chance_in_theory, pass_chance
from tests.tasks.evaluate.samples import label_table, score_table
from tests.tasks.gate.samples import decide_on, label_evidence, paired_labels, rule

N = 600
RULES = GateRecipe(metric="accuracy", margin=0.03)


def models(count, seed=0, skill=0.9):
    """Answers of equally good models to rows of different difficulty."""
    random = np.random.default_rng(seed)
    chance = np.where(random.random(N) < 0.2, random.random(N), skill + 0.05)
    return [random.random(N) < chance for _ in range(count)]


class TestPassChance:
    def test_is_how_often_such_candidates_pass(self):
        answers = models(40)
        baseline, earlier, later = answers[0], answers[1:20], answers[20:]
        found = pass_chance(list(map(label_table, earlier)), label_table(baseline), None, RULES, N)
        outcomes = [
            decide_on(label_evidence(label_table(one), label_table(baseline)), RULES).outcome
            for one in later
        ]
        passed = outcomes.count("promoted") / len(outcomes)
        assert found.chance == pytest.approx(passed, abs=0.25)
        assert (found.examples, found.earlier) == (N, 19)

    def test_a_lucky_baseline_makes_it_small_where_theory_does_not(self):
        answers = models(12)
        lucky = answers[0] | (np.arange(N) % 4 == 0)
        found = pass_chance(list(map(label_table, answers[1:])), label_table(lucky), None, RULES, N)
        verdict = decide_on(paired_labels(gained=25, lost=25, both=500, neither=50), RULES)
        theory = chance_in_theory(rule(verdict, "not worse"), RULES, N)
        assert found.chance < 0.1 < 0.3 < theory.chance
        assert "A candidate that is as good as the last 11 passes the gate with" in found.sentence
        assert "equally good passes the gate with" in theory.sentence

    def test_says_how_many_rows_would_do(self):
        answers = models(12)
        found = pass_chance(
            list(map(label_table, answers[1:])), label_table(answers[0]), None, RULES, N
        )
        enough = pass_chance(
            list(map(label_table, answers[1:])), label_table(answers[0]), None, RULES, found.needed
        )
        assert found.chance < 0.8 and found.needed > N
        assert enough.chance == pytest.approx(0.8, abs=0.1)
        assert f"80% takes about {found.needed:,} rows" in found.sentence

    def test_says_if_no_number_would_do(self):
        answers = models(5)
        best = np.ones(N, bool)
        found = pass_chance(list(map(label_table, answers)), label_table(best), None, RULES, N)
        assert (found.chance, found.needed) == (0, 0)
        assert "More rows would not help" in found.sentence

    def test_counts_the_anchor(self):
        answers = models(6)
        tables, best = list(map(label_table, answers[1:])), label_table(np.ones(N, bool))
        found = pass_chance(tables, label_table(answers[0]), best, RULES, N)
        assert found.chance == 0

    def test_of_losses_counts_tokens(self):
        random = np.random.default_rng(0)
        tables = [score_table(loss=2 + random.normal(0, 0.1, 300)) for _ in range(6)]
        rules = GateRecipe(metric="loss", margin=0.05)
        assert pass_chance(tables[1:], tables[0], None, rules, 300).chance > 0.9
        rules = GateRecipe(metric="loss", margin=0.005)
        assert pass_chance(tables[1:], tables[0], None, rules, 300).chance < 0.5

    def test_is_not_said_of_too_few_candidates_or_rows(self):
        answers = models(6)
        tables, few = list(map(label_table, answers)), label_table(answers[0][:20])
        assert pass_chance(tables[1:3], tables[0], None, RULES, N) is None
        assert pass_chance(tables[1:], few, None, RULES, N) is None
        assert pass_chance(tables[1:], tables[0], None, GateRecipe(metric="f1"), N) is None

    def test_in_theory_is_not_said_of_better(self):
        verdict = decide_on(paired_labels(gained=25, lost=5, both=570), GateRecipe(claim="better"))
        claim = rule(verdict, "better")
        assert chance_in_theory(claim, GateRecipe(claim="better"), N) is None
