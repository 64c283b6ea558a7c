"""A budget of looks at the test set."""

from tasks.contracts.recipe_evaluation import GateRecipe
from tests.tasks.gate.samples import decide_on, paired_labels, rule

GAIN = {"gained": 30, "lost": 15, "both": 535, "neither": 20}


class TestBudget:
    def test_each_look_gets_a_part_of_the_error_rate(self):
        found = paired_labels(**GAIN)
        assert decide_on(found, GateRecipe(claim="better")).outcome == "promoted"
        verdict = decide_on(found, GateRecipe(claim="better", looks=20), looks=3.0)
        claim = rule(verdict, "better")
        assert not claim.passed and 0.0025 < claim.p_value < 0.05
        assert "the p-value must be at most 0.0025" in claim.sentence
        assert "A budget of 20 looks asks for a p-value of at most 0.0025 instead of 0.05" in (
            claim.sentence
        )
        assert "is detected as surely as" in claim.sentence
        assert verdict.summary.endswith("This test set has now served 3 verdicts of 20.")

    def test_says_what_it_costs_an_equal_candidate(self):
        found = paired_labels(gained=10, lost=10, both=960, neither=20)
        claim = rule(decide_on(found, GateRecipe(looks=20), looks=1.0), "not worse")
        assert "without it, an equally good candidate passes with" in claim.sentence

    def test_that_is_spent_rejects_better(self):
        found = paired_labels(gained=60, lost=5, both=515, neither=20)
        rules = GateRecipe(claim="better", looks=20)
        assert decide_on(found, rules, looks=20.0).outcome == "promoted"
        verdict = decide_on(found, rules, looks=24.0)
        assert verdict.outcome == "rejected"
        # 23 looks at 600 rows count as 19 if there are 600 * 23 / 19 rows.
        assert "The test set is used up: 127 fresh rows are needed." in verdict.summary

    def test_that_is_spent_marks_not_worse(self):
        found = paired_labels(gained=5, lost=5, both=1970, neither=20)
        verdict = decide_on(found, GateRecipe(looks=2), looks=3.5)
        assert verdict.outcome == "promoted"
        assert "The budget of 2 looks at the test set is spent: this is look 3.5." in (
            rule(verdict, "not worse").sentence
        )

    def test_without_one_the_verdict_says_how_likely_luck_is(self):
        verdict = decide_on(paired_labels(**GAIN), GateRecipe(claim="better"), looks=20.0)
        assert "of so many equally good candidates, one is lucky in up to 64%" in verdict.summary
