"""Verdicts on language models."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import Verdict
from tasks.gate import (
    exact_tests,
    language,
)
from tests.tasks.evaluate.samples import N, label_table, score_table
from tests.tasks.gate.samples import (
    BETTER_LOSS,
    LOSS,
    decide_on,
    hashes_of,
    paired_losses,
    reasons,
    rule,
    score_evidence,
)


class TestLoss:
    def test_lower_loss_is_better(self):
        verdict = decide_on(paired_losses(gain=0.2), BETTER_LOSS)
        claim = rule(verdict, "better")
        assert verdict.outcome == "promoted"
        assert claim.difference == pytest.approx(claim.candidate - claim.baseline)
        assert claim.interval[0] < claim.difference < claim.interval[1] < 0
        assert claim.discordant is None

    def test_higher_loss_is_not_better(self):
        verdict = decide_on(paired_losses(gain=-0.2), BETTER_LOSS)
        assert verdict.outcome == "rejected"
        assert rule(verdict, "better").p_value == 1

    def test_of_a_few_long_examples_is_said_to_rest_on_them(self):
        tokens = np.where(np.arange(N) % 50 == 0, 4000, 10)
        tables = [score_table(np.full(N, loss), tokens=tokens) for loss in (2.0, 2.1)]
        claim = rule(decide_on(score_evidence(*tables), BETTER_LOSS), "better")
        assert "they say as much as 8 of equal length" in claim.sentence
        even = rule(decide_on(paired_losses(), BETTER_LOSS), "better")
        assert "of equal length" not in even.sentence

    def test_is_weighted_by_tokens(self):
        found = paired_losses()
        claim = rule(decide_on(found, LOSS), "not worse")
        tokens, losses = (found.candidate[name].to_numpy() for name in ("tokens", "loss"))
        assert claim.candidate == pytest.approx((tokens * losses).sum() / tokens.sum())

    def test_sentence_states_all_numbers(self):
        claim = rule(decide_on(paired_losses(gain=0.2), BETTER_LOSS), "better")
        assert claim.name == "loss better than the baseline"
        assert claim.sentence.startswith(
            f"Loss is {claim.candidate:.3f} against {claim.baseline:.3f} nats per token for the "
            f"baseline: significantly better (difference −{-claim.difference:.3f}, 90% interval −"
        )
        assert "300 examples). This test set detects a fall of 0.0" in claim.sentence

    def test_equal_loss_is_not_worse_but_not_better_either(self):
        found = paired_losses(spread=0.1)
        verdict = decide_on(found, LOSS)
        assert verdict.outcome == "promoted"
        assert rule(verdict, "not worse").name == (
            "loss not worse than the baseline by more than 0.05 nats per token"
        )
        assert decide_on(found, BETTER_LOSS).outcome == "rejected"

    def test_loss_that_may_be_higher_by_the_margin_is_rejected(self):
        claim = rule(decide_on(paired_losses(gain=-0.05), LOSS), "not worse")
        assert not claim.passed
        assert "a rise of more than 0.05 nats per token cannot be ruled out" in claim.sentence

    def test_identical_losses_are_not_worse_but_not_better_either(self):
        same = score_table(np.random.default_rng(0).lognormal(size=N))
        assert decide_on(score_evidence(same, same), LOSS).outcome == "promoted"
        assert decide_on(score_evidence(same, same), BETTER_LOSS).outcome == "rejected"

    def test_agreement_on_few_examples_shows_nothing(self):
        same = score_table(n=40)
        rules = GateRecipe(metric="loss", margin=0.02, min_examples=1)
        claim = rule(decide_on(score_evidence(same, same), rules), "not worse")
        assert not claim.passed
        assert "that takes 149" in claim.sentence

    def test_is_the_metric_for_auto(self):
        assert rule(decide_on(paired_losses(gain=0.2)), "not worse").metric == "loss"

    def test_does_not_depend_on_the_order_of_rows(self):
        found = paired_losses()
        turned = np.random.default_rng(1).permutation(N)
        other = dataclasses.replace(found, candidate=found.candidate.take(turned))
        assert decide_on(other, LOSS, ("length",)) == decide_on(found, LOSS, ("length",))

    @given(st.integers(0, 50))
    @settings(max_examples=10, deadline=None)
    def test_swapped_models_are_never_both_better(self, seed):
        found = paired_losses(gain=0.03, seed=seed)
        swapped = dataclasses.replace(found, candidate=found.baseline, baseline=found.candidate)
        one, other = (rule(decide_on(e, BETTER_LOSS), "better") for e in (found, swapped))
        assert one.difference == pytest.approx(-other.difference)
        assert not (one.passed and other.passed)


class TestPerplexity:
    def test_difference_is_a_share_of_the_baseline(self):
        found = paired_losses(gain=0.2)
        claim = rule(decide_on(found, GateRecipe(metric="perplexity", claim="better")), "better")
        by_loss = rule(decide_on(found, BETTER_LOSS), "better")
        assert claim.candidate == pytest.approx(math.exp(by_loss.candidate))
        assert claim.difference == pytest.approx(claim.candidate / claim.baseline - 1)
        assert claim.p_value == by_loss.p_value
        assert f"difference −{-100 * claim.difference:.3f}%" in claim.sentence

    def test_margin_is_a_share_of_the_baseline(self):
        found = paired_losses(spread=0.1)
        claim = rule(decide_on(found, GateRecipe(metric="perplexity", margin=0.05)), "not worse")
        assert claim.passed
        assert claim.name == "perplexity not worse than the baseline by more than 5%"
        worse = paired_losses(gain=-math.log(1.05), spread=0.1)
        rules = GateRecipe(metric="perplexity", margin=0.05)
        assert decide_on(worse, rules).outcome == "rejected"


class TestOtherScores:
    def test_shares_are_compared_by_the_bootstrap(self):
        draw = np.random.default_rng(2)
        theirs = draw.integers(0, 4, N) / 3
        ours = np.minimum(theirs + (draw.random(N) < 0.3) / 3, 1)
        found = score_evidence(score_table(checks=ours), score_table(checks=theirs))
        claim = rule(decide_on(found, GateRecipe(metric="checks", claim="better")), "better")
        assert claim.passed
        assert claim.discordant is None
        assert claim.sentence.startswith("Share of checks is 0.")

    def test_loss_of_preferences_is_per_pair(self):
        found = paired_losses(gain=0.2, task="preference")
        claim = rule(decide_on(found, BETTER_LOSS), "better")
        assert claim.candidate == pytest.approx(found.candidate["loss"].to_numpy().mean())
        assert "nats per pair" in claim.sentence


class TestFloors:
    def test_floor_of_a_loss_is_a_ceiling(self):
        rules = GateRecipe(metric="loss", margin=0.5, floors={"loss": 3.0, "perplexity": 5.0})
        verdict = decide_on(paired_losses(), rules)
        loss, perplexity = (r for r in verdict.rules if r.rule == "floor")
        assert (loss.passed, perplexity.passed) == (True, False)
        assert verdict.outcome == "rejected"
        assert loss.name == "loss at most 3"
        assert "nats per token, at most the ceiling of 3 (95% interval" in loss.sentence
        assert "above the ceiling of 5" in perplexity.sentence
        assert loss.interval[0] < loss.candidate < loss.interval[1]

    def test_floor_of_a_share_is_a_minimum(self):
        right = (np.arange(N) % 4 > 0).astype(float)
        found = score_evidence(score_table(exact_match=right, rouge_l=right * 0.9), score_table())
        rules = GateRecipe(metric="loss", floors={"exact_match": 0.7, "rouge_l": 0.7})
        exact, rouge = (
            r
            for r in decide_on(dataclasses.replace(found, baseline=None), rules, (), "none").rules
            if r.rule == "floor"
        )
        assert (exact.passed, rouge.passed) == (True, False)
        assert exact.interval == exact_tests.wilson_interval(225, N)
        assert 0 <= rouge.interval[0] < rouge.candidate < rouge.interval[1] <= 1


class TestFirstRun:
    def test_candidate_must_be_better_than_the_base_model(self):
        verdict = decide_on(paired_losses(), LOSS, baseline="untrained base")
        assert verdict.outcome == "rejected"
        verdict = decide_on(paired_losses(gain=0.2), LOSS, baseline="untrained base")
        assert verdict.outcome == "promoted"
        assert rule(verdict, "better").name == "loss better than the untrained base model"

    def test_floors_can_decide_without_a_baseline(self):
        found = dataclasses.replace(paired_losses(), baseline=None)
        rules = GateRecipe(metric="loss", floors={"loss": 3.0}, first_run="floors")
        assert decide_on(found, rules, baseline="none").outcome == "promoted"
        assert "neither a baseline nor a floor" in reasons(decide_on(found, LOSS, baseline="none"))


class TestBudgets:
    def test_latency_is_per_token_if_answers_are_generated(self):
        rules = GateRecipe(metric="loss", max_latency_ms=5)
        found = paired_losses(latency_ms=4.0)
        assert "ms per example" in rule(decide_on(found, rules), "budget").sentence
        written = found.candidate.append_column("generated", pa.array(["x"] * N))
        found = dataclasses.replace(found, candidate=written)
        assert rule(decide_on(found, rules), "budget").sentence == (
            "The latency is 4.0 ms per token, within the budget of 5 ms per token."
        )


class TestInvalidScores:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1.0])
    @pytest.mark.parametrize("model", ["candidate", "baseline"])
    def test_invalid_loss_rejects(self, model, value):
        found = paired_losses(gain=0.5)
        losses = getattr(found, model)["loss"].to_numpy().copy()
        losses[7] = value
        broken = getattr(found, model).set_column(3, "loss", pa.array(losses))
        assert f"The {model}'s loss is" in reasons(
            decide_on(dataclasses.replace(found, **{model: broken}), BETTER_LOSS)
        )

    @pytest.mark.parametrize("column", language.COLUMNS)
    @pytest.mark.parametrize("model", ["candidate", "baseline"])
    def test_missing_column_rejects(self, model, column):
        found = paired_losses(gain=0.5)
        broken = getattr(found, model).drop_columns([column])
        assert column in reasons(
            decide_on(dataclasses.replace(found, **{model: broken}), BETTER_LOSS)
        )

    def test_metric_that_was_not_measured_rejects(self):
        rules = GateRecipe(metric="loss", floors={"checks": 0.5})
        assert "lack or repeat the columns checks" in reasons(decide_on(paired_losses(), rules))
        empty = pa.nulls(N, pa.float64())
        found = paired_losses()
        found = dataclasses.replace(
            found,
            candidate=found.candidate.append_column("checks", empty),
            baseline=found.baseline.append_column("checks", empty),
        )
        assert "share of checks is not a finite number" in reasons(decide_on(found, rules))

    def test_share_above_1_rejects(self):
        found = score_evidence(
            score_table(rouge_l=np.full(N, 1.5)), score_table(rouge_l=np.ones(N))
        )
        text = reasons(decide_on(found, GateRecipe(metric="rouge_l")))
        assert "ROUGE-L is not between 0 and 1" in text

    def test_example_that_only_one_model_answered_rejects(self):
        found = paired_losses(gain=0.5)
        broken = dataclasses.replace(found, baseline=found.baseline.slice(0, N - 1))
        assert "The baseline has no answer to 1 test example." in reasons(
            decide_on(broken, BETTER_LOSS)
        )

    def test_different_token_counts_cannot_be_compared_by_loss(self):
        found = paired_losses(gain=0.5)
        other = score_table(found.baseline["loss"].to_numpy(), tokens=np.full(N, 9))
        found = dataclasses.replace(found, baseline=other)
        assert "their losses per token cannot be compared" in reasons(decide_on(found, BETTER_LOSS))

    def test_scores_without_tokens_reject(self):
        nothing = score_table(tokens=np.zeros(N, int))
        assert "have no tokens" in reasons(decide_on(score_evidence(nothing, nothing), LOSS))

    def test_no_tokens_left_after_exclusion_rejects(self):
        tokens = np.where(np.arange(N) < 10, 5, 0)
        same = score_table(tokens=tokens)
        rules = GateRecipe(metric="loss", floors={"loss": 9.0})
        verdict = decide_on(score_evidence(same, same, candidate_seen=hashes_of(*range(10))), rules)
        assert verdict.outcome == "rejected"
        assert Verdict.model_validate_json(verdict.model_dump_json()).outcome == "rejected"

    def test_table_of_labels_rejects(self):
        found = score_evidence(label_table(np.ones(N, bool)), label_table(np.ones(N, bool)))
        assert "tokens" in reasons(decide_on(found, LOSS))

    def test_seen_examples_are_excluded(self):
        verdict = decide_on(paired_losses(candidate_seen=hashes_of(0, 1, 2)), LOSS)
        assert (verdict.examples, verdict.dropped) == (N - 3, 3)
