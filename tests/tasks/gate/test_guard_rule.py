"""What the gate makes of the guard set."""

import dataclasses

import numpy as np
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.gate import decide, guard_rule
from tests.tasks.gate.test_decide import seen
from tests.tasks.gate.test_language import N, evidence, of_losses, table

RULES = GateRecipe(metric="loss", margin=0.2, guard_margin=0.1)


def guard_of(rise=0.0, spread=0.05, n=100, task="completion"):
    """Scores on a guard set, the candidate's losses higher by `rise`."""
    found = of_losses(gain=-rise, spread=spread, n=n, seed=9)
    return guard_rule.Guard(found.candidate, found.baseline, task)


def judged(guard, found=None, rules=RULES, baseline="release 7"):
    return decide.decide(
        found or of_losses(gain=0.2),
        rules,
        (),
        candidate_digest="c" * 64,
        baseline=baseline,
        baseline_digest="b" * 64,
        baseline_entry=7,
        test_digest="t" * 64,
        look_number=1,
        guard=guard,
    )


def guarded(verdict):
    (found,) = [rule for rule in verdict.rules if rule.slice == "guard set"]
    return found


class TestForgetting:
    def test_nothing_passes(self):
        verdict = judged(guard_of(rise=0.02))
        rule = guarded(verdict)
        assert verdict.outcome == "promoted"
        assert (rule.rule, rule.passed, rule.vetoes, rule.examples) == ("no harm", True, True, 100)
        assert rule.name == "no harm to the guard set by more than 0.1 nats per token"
        assert rule.difference == pytest.approx(0.02, abs=1e-3)
        assert rule.sentence.startswith(
            f"On the guard set the loss is {rule.candidate:.3f} against {rule.baseline:.3f} nats "
            "per token for the baseline: not worse by more than 0.1 nats per token (difference +"
        )

    def test_vetoes_what_is_better_on_the_test_set(self):
        verdict = judged(guard_of(rise=0.3))
        rule = guarded(verdict)
        assert verdict.outcome == "rejected"
        assert [each for each in verdict.rules if not each.passed] == [rule]
        assert "a rise of more than 0.1 nats per token cannot be ruled out" in rule.sentence
        assert "for want of: no harm to the guard set" in verdict.summary

    def test_that_is_only_possible_vetoes_too(self):
        assert not guarded(judged(guard_of(rise=0.1))).passed

    def test_to_improve_is_no_harm(self):
        assert guarded(judged(guard_of(rise=-0.5))).passed

    def test_is_measured_by_the_margin_of_the_recipe(self):
        wide = RULES.model_copy(update={"guard_margin": 0.5})
        assert guarded(judged(guard_of(rise=0.3), rules=wide)).passed

    def test_of_the_gates_own_metric_is_no_matter(self):
        right = (np.arange(N) % 2).astype(float)
        found = evidence(table(exact_match=right), table(exact_match=right))
        rules = GateRecipe(metric="exact_match", margin=0.05, floors={"exact_match": 0.1})
        assert judged(guard_of(), found, rules).outcome == "promoted"


class TestAFirstRun:
    def test_is_held_against_the_base_model(self):
        rule = guarded(judged(guard_of(), baseline="untrained base"))
        assert rule.passed and "for the base model: not worse" in rule.sentence

    def test_is_guarded_where_floors_alone_decide_too(self):
        alone = dataclasses.replace(of_losses(), baseline=None, baseline_labels=None)
        rules = RULES.model_copy(update={"first_run": "floors", "floors": {"loss": 9.0}})
        assert judged(guard_of(), alone, rules, "none").outcome == "promoted"
        assert judged(guard_of(rise=0.3), alone, rules, "none").outcome == "rejected"


class TestFailsClosed:
    def test_where_there_are_too_few_texts_to_tell(self):
        rule = guarded(judged(guard_of(rise=0, spread=0, n=20)))
        assert not rule.passed
        assert "With 20 examples not even two models that always agree" in rule.sentence
        assert "that takes 29, or a wider gate.guard_margin" in rule.sentence

    def test_where_all_texts_were_seen_in_training(self):
        found = dataclasses.replace(of_losses(gain=0.2), candidate_seen=seen(*range(250)))
        rule = guarded(judged(guard_of(), found))
        assert (rule.rule, rule.passed) == ("error", False)
        assert "All 100 examples of the guard set had been seen in training" in rule.sentence

    def test_texts_that_were_seen_are_left_out_and_counted(self):
        found = dataclasses.replace(of_losses(gain=0.2), candidate_seen=seen(*range(30)))
        rule = guarded(judged(guard_of(), found))
        assert rule.examples == 70
        assert rule.sentence.endswith("30 were left out because a model had seen them in training.")

    def test_where_a_loss_is_no_number(self):
        broken = table(np.full(N, np.nan))
        rule = guarded(judged(guard_rule.Guard(broken, table(), "completion")))
        assert (rule.rule, rule.passed, rule.vetoes) == ("error", False, True)
        assert rule.sentence.startswith("The guard set cannot be judged. The candidate's loss is")

    def test_where_the_models_read_other_tokens(self):
        rule = guarded(judged(guard_rule.Guard(table(), table(tokens=np.full(N, 9)), "completion")))
        assert not rule.passed and "a loss per token says nothing" in rule.sentence
