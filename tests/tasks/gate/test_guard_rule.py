"""The rule on the guard set."""

import dataclasses

import numpy as np
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.gate import decide, guard_rule
from tests.tasks.evaluate.samples import N, score_table
from tests.tasks.gate.samples import hashes_of, paired_losses, score_evidence

RULES = GateRecipe(metric="loss", margin=0.2, guard_margin=0.1)


def guard_of(rise=0.0, spread=0.05, n=100, task="completion"):
    """Scores on a guard set; the candidate's losses are higher by `rise`."""
    found = paired_losses(gain=-rise, spread=spread, n=n, seed=9)
    return guard_rule.Guard(found.candidate, found.baseline, task)


def decide_with(guard, found=None, rules=RULES, baseline="release 7"):
    return decide.decide(
        found or paired_losses(gain=0.2),
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


def guard_outcome(verdict):
    (found,) = [rule for rule in verdict.rules if rule.slice == "guard set"]
    return found


class TestForgetting:
    def test_small_rise_passes(self):
        verdict = decide_with(guard_of(rise=0.02))
        rule = guard_outcome(verdict)
        assert verdict.outcome == "promoted"
        assert (rule.rule, rule.passed, rule.vetoes, rule.examples) == ("no harm", True, True, 100)
        assert rule.name == "no harm to the guard set by more than 0.1 nats per token"
        assert rule.difference == pytest.approx(0.02, abs=1e-3)
        assert rule.sentence.startswith(
            f"On the guard set, loss is {rule.candidate:.3f} against {rule.baseline:.3f} nats "
            "per token for the baseline: not worse by more than 0.1 nats per token (difference +"
        )

    def test_large_rise_vetoes_a_candidate_that_is_better_on_the_test_set(self):
        verdict = decide_with(guard_of(rise=0.3))
        rule = guard_outcome(verdict)
        assert verdict.outcome == "rejected"
        assert [each for each in verdict.rules if not each.passed] == [rule]
        assert "a rise of more than 0.1 nats per token cannot be ruled out" in rule.sentence
        assert "Failed: no harm to the guard set" in verdict.summary

    def test_rise_that_cannot_be_ruled_out_vetoes(self):
        assert not guard_outcome(decide_with(guard_of(rise=0.1))).passed

    def test_improvement_passes(self):
        assert guard_outcome(decide_with(guard_of(rise=-0.5))).passed

    def test_margin_is_that_of_the_recipe(self):
        wide = RULES.model_copy(update={"guard_margin": 0.5})
        assert guard_outcome(decide_with(guard_of(rise=0.3), rules=wide)).passed

    def test_does_not_depend_on_the_metric_of_the_claim(self):
        right = (np.arange(N) % 2).astype(float)
        found = score_evidence(score_table(exact_match=right), score_table(exact_match=right))
        rules = GateRecipe(metric="exact_match", margin=0.05, floors={"exact_match": 0.1})
        assert decide_with(guard_of(), found, rules).outcome == "promoted"


class TestFirstRun:
    def test_candidate_is_compared_with_the_base_model(self):
        rule = guard_outcome(decide_with(guard_of(), baseline="untrained base"))
        assert rule.passed and "for the base model: not worse" in rule.sentence

    def test_rule_applies_without_a_baseline(self):
        alone = dataclasses.replace(paired_losses(), baseline=None, baseline_labels=None)
        rules = RULES.model_copy(update={"first_run": "floors", "floors": {"loss": 9.0}})
        assert decide_with(guard_of(), alone, rules, "none").outcome == "promoted"
        assert decide_with(guard_of(rise=0.3), alone, rules, "none").outcome == "rejected"


class TestFailsClosed:
    def test_too_few_texts_reject(self):
        rule = guard_outcome(decide_with(guard_of(rise=0, spread=0, n=20)))
        assert not rule.passed
        assert "With 20 examples, even two models that always agree" in rule.sentence
        assert "that takes 29 examples or a wider gate.guard_margin" in rule.sentence

    def test_texts_that_were_all_seen_in_training_reject(self):
        found = dataclasses.replace(paired_losses(gain=0.2), candidate_seen=hashes_of(*range(250)))
        rule = guard_outcome(decide_with(guard_of(), found))
        assert (rule.rule, rule.passed) == ("error", False)
        assert (
            "No example of the guard set counts: a model saw 100 of 100 in training"
            in rule.sentence
        )

    def test_seen_texts_are_excluded_and_counted(self):
        found = dataclasses.replace(paired_losses(gain=0.2), candidate_seen=hashes_of(*range(30)))
        rule = guard_outcome(decide_with(guard_of(), found))
        assert rule.examples == 70
        assert rule.sentence.endswith("30 were excluded because a model saw them in training.")

    def test_loss_that_is_not_a_number_rejects(self):
        broken = score_table(np.full(N, np.nan))
        rule = guard_outcome(decide_with(guard_rule.Guard(broken, score_table(), "completion")))
        assert (rule.rule, rule.passed, rule.vetoes) == ("error", False, True)
        assert rule.sentence.startswith(
            "The guard set's scores cannot be used. The candidate's loss is"
        )

    def test_different_token_counts_reject(self):
        rule = guard_outcome(
            decide_with(
                guard_rule.Guard(score_table(), score_table(tokens=np.full(N, 9)), "completion")
            )
        )
        assert not rule.passed and "their losses per token cannot be compared" in rule.sentence
