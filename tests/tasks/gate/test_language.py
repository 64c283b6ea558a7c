"""What the gate makes of language models' scores."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.contracts.errors import BadData
from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import Verdict
from tasks.evaluate import answer_samples, metrics
from tasks.gate import bootstrap_mean, exact_tests, language
from tasks.gate import evidence as evidence_
from tasks.gate import rules as rules_
from tests.tasks.gate.test_decide import judge, reasons, rule, seen

N = 300


def table(loss=None, n=N, tokens=None, **columns):
    """Scores; the hashes count up from 0."""
    rows = np.arange(n)
    values = {
        "hash_hi": pa.array(rows.astype(np.uint64)),
        "hash_lo": pa.array((rows * 7).astype(np.uint64)),
        "label": pa.array([""] * n),
        "loss": pa.array(np.full(n, 2.0) if loss is None else np.asarray(loss, float)),
        "tokens": pa.array(rows % 40 + 3 if tokens is None else tokens, pa.int32()),
        "length": pa.array(rows % 60 + 20, pa.int32()),
    }
    return pa.table({**values, **{name: pa.array(c) for name, c in columns.items()}})


def evidence(candidate, baseline=None, **changes):
    return evidence_.Evidence(
        **{
            "candidate": candidate,
            "baseline": baseline,
            "candidate_labels": (),
            "baseline_labels": None if baseline is None else (),
            "candidate_seen": None,
            "baseline_seen": None,
            "latency_ms": None,
            "size_bytes": 90_000_000,
            "task": "instruction",
            **changes,
        }
    )


def of_losses(gain=0.0, spread=0.3, n=N, seed=4, **changes):
    """A candidate whose losses are lower by `gain`, give or take."""
    draw = np.random.default_rng(seed)
    theirs = draw.lognormal(0.8, 0.4, n)
    noise = spread * draw.normal(size=n)
    # Exactly so, over all tokens.
    tokens = np.arange(n) % 40 + 3
    ours = np.maximum(theirs - gain + noise - (noise * tokens).sum() / tokens.sum(), 0.01)
    return evidence(table(ours, n), table(theirs, n), **changes)


LOSS = GateRecipe(metric="loss", margin=0.05)
BETTER = GateRecipe(metric="loss", claim="better")


class TestLoss:
    def test_a_lower_loss_is_better(self):
        verdict = judge(of_losses(gain=0.2), BETTER)
        claim = rule(verdict, "better")
        assert verdict.outcome == "promoted"
        assert claim.difference == pytest.approx(claim.candidate - claim.baseline)
        assert claim.interval[0] < claim.difference < claim.interval[1] < 0
        assert claim.discordant is None

    def test_a_higher_loss_is_not(self):
        verdict = judge(of_losses(gain=-0.2), BETTER)
        assert verdict.outcome == "rejected"
        assert rule(verdict, "better").p_value == 1

    def test_is_weighted_by_tokens(self):
        found = of_losses()
        claim = rule(judge(found, LOSS), "not worse")
        tokens, losses = (found.candidate[name].to_numpy() for name in ("tokens", "loss"))
        assert claim.candidate == pytest.approx((tokens * losses).sum() / tokens.sum())

    def test_its_sentence_says_it_all(self):
        claim = rule(judge(of_losses(gain=0.2), BETTER), "better")
        assert claim.name == "loss better than the baseline"
        assert claim.sentence.startswith(
            f"Loss is {claim.candidate:.3f} against {claim.baseline:.3f} nats per token for the "
            f"baseline: better, beyond chance (difference −{-claim.difference:.3f}, 90% interval −"
        )
        assert "300 examples). This test set would have shown a fall of 0.0" in claim.sentence

    def test_an_equal_one_is_not_worse_by_the_margin_but_neither_better(self):
        found = of_losses(spread=0.1)
        verdict = judge(found, LOSS)
        assert verdict.outcome == "promoted"
        assert rule(verdict, "not worse").name == (
            "loss not worse than the baseline by more than 0.05 nats per token"
        )
        assert judge(found, BETTER).outcome == "rejected"

    def test_one_that_may_be_worse_by_the_margin_is_rejected(self):
        claim = rule(judge(of_losses(gain=-0.05), LOSS), "not worse")
        assert not claim.passed
        assert "a rise of more than 0.05 nats per token cannot be ruled out" in claim.sentence

    def test_of_the_very_same_answers_is_not_worse_and_not_better(self):
        same = table(np.random.default_rng(0).lognormal(size=N))
        assert judge(evidence(same, same), LOSS).outcome == "promoted"
        assert judge(evidence(same, same), BETTER).outcome == "rejected"

    def test_agreement_of_a_few_examples_shows_nothing(self):
        same = table(n=40)
        rules = GateRecipe(metric="loss", margin=0.02, min_examples=1)
        claim = rule(judge(evidence(same, same), rules), "not worse")
        assert not claim.passed
        assert "that takes 149" in claim.sentence

    def test_is_what_auto_means(self):
        assert rule(judge(of_losses(gain=0.2)), "not worse").metric == "loss"

    def test_the_order_of_rows_does_not_matter(self):
        found = of_losses()
        turned = np.random.default_rng(1).permutation(N)
        other = dataclasses.replace(found, candidate=found.candidate.take(turned))
        assert judge(other, LOSS, ("length",)) == judge(found, LOSS, ("length",))

    @given(st.integers(0, 50))
    @settings(max_examples=10, deadline=None)
    def test_swapping_the_models_never_makes_both_better(self, seed):
        found = of_losses(gain=0.03, seed=seed)
        swapped = dataclasses.replace(found, candidate=found.baseline, baseline=found.candidate)
        one, other = (rule(judge(e, BETTER), "better") for e in (found, swapped))
        assert one.difference == pytest.approx(-other.difference)
        assert not (one.passed and other.passed)


class TestPerplexity:
    def test_is_compared_in_shares(self):
        found = of_losses(gain=0.2)
        claim = rule(judge(found, GateRecipe(metric="perplexity", claim="better")), "better")
        by_loss = rule(judge(found, BETTER), "better")
        assert claim.candidate == pytest.approx(math.exp(by_loss.candidate))
        assert claim.difference == pytest.approx(claim.candidate / claim.baseline - 1)
        assert claim.p_value == by_loss.p_value
        assert f"difference −{-100 * claim.difference:.3f}%" in claim.sentence

    def test_its_margin_is_a_share(self):
        found = of_losses(spread=0.1)
        claim = rule(judge(found, GateRecipe(metric="perplexity", margin=0.05)), "not worse")
        assert claim.passed
        assert claim.name == "perplexity not worse than the baseline by more than 5%"
        worse = of_losses(gain=-math.log(1.05), spread=0.1)
        rules = GateRecipe(metric="perplexity", margin=0.05)
        assert judge(worse, rules).outcome == "rejected"


class TestRightOrWrong:
    @pytest.mark.parametrize(
        ("metric", "task"),
        [("exact_match", "instruction"), ("checks", "completion"), ("accuracy", "preference")],
    )
    def test_is_tested_exactly(self, metric, task):
        ours, theirs = (np.arange(N) % 3 > 0).astype(float), (np.arange(N) % 2).astype(float)
        found = evidence(table(**{metric: ours}), table(**{metric: theirs}), task=task)
        claim = rule(judge(found, GateRecipe(metric=metric, claim="better")), "better")
        assert claim.discordant == (100, 50)
        assert claim.p_value == exact_tests.superiority_p(100, 50)
        assert "100 gained and 50 lost" in claim.sentence
        claim = rule(judge(found, GateRecipe(metric=metric)), "not worse")
        assert claim.p_value == exact_tests.noninferiority_p(100, 50, N, 0.02)

    def test_shares_are_compared_by_their_means(self):
        draw = np.random.default_rng(2)
        theirs = draw.integers(0, 4, N) / 3
        ours = np.minimum(theirs + (draw.random(N) < 0.3) / 3, 1)
        found = evidence(table(checks=ours), table(checks=theirs))
        claim = rule(judge(found, GateRecipe(metric="checks", claim="better")), "better")
        assert claim.passed
        assert claim.discordant is None
        assert claim.sentence.startswith("Share of checks is 0.")

    def test_preferences_have_a_loss_of_their_own(self):
        found = of_losses(gain=0.2, task="preference")
        claim = rule(judge(found, BETTER), "better")
        assert claim.candidate == pytest.approx(found.candidate["loss"].to_numpy().mean())
        assert "nats per pair" in claim.sentence


class TestFloors:
    def test_of_losses_are_ceilings(self):
        rules = GateRecipe(metric="loss", margin=0.5, floors={"loss": 3.0, "perplexity": 5.0})
        verdict = judge(of_losses(), rules)
        loss, perplexity = (r for r in verdict.rules if r.rule == "floor")
        assert (loss.passed, perplexity.passed) == (True, False)
        assert verdict.outcome == "rejected"
        assert loss.name == "loss at most 3"
        assert "nats per token, at most the ceiling of 3 (95% interval" in loss.sentence
        assert "above the ceiling of 5" in perplexity.sentence
        assert loss.interval[0] < loss.candidate < loss.interval[1]

    def test_of_shares_are_floors(self):
        right = (np.arange(N) % 4 > 0).astype(float)
        found = evidence(table(exact_match=right, rouge_l=right * 0.9), table())
        rules = GateRecipe(metric="loss", floors={"exact_match": 0.7, "rouge_l": 0.7})
        exact, rouge = (
            r
            for r in judge(dataclasses.replace(found, baseline=None), rules, (), "none").rules
            if r.rule == "floor"
        )
        assert (exact.passed, rouge.passed) == (True, False)
        assert exact.interval == exact_tests.wilson_interval(225, N)
        assert 0 <= rouge.interval[0] < rouge.candidate < rouge.interval[1] <= 1


class TestSlices:
    def found(self, worse=0.0, **changes):
        draw = np.random.default_rng(3)
        group = np.repeat(["a", "b", "c"], 100)
        theirs = draw.lognormal(0.8, 0.3, N)
        ours = theirs + 0.1 * draw.normal(size=N) - 0.1
        ours[group == "b"] += worse
        return evidence(table(np.maximum(ours, 0.01), group=group), table(theirs), **changes)

    def test_significant_harm_to_one_slice_vetoes(self):
        verdict = judge(self.found(worse=0.2), LOSS, ("group",))
        harmed = rule(verdict, "no harm", "group=b")
        assert rule(verdict, "not worse").passed
        assert (harmed.passed, harmed.vetoes, harmed.metric) == (False, True, "loss")
        assert verdict.outcome == "rejected"
        assert "nats per token for the baseline: significantly worse" in harmed.sentence

    def test_no_harm_no_veto(self):
        verdict = judge(self.found(), LOSS, ("group", "length"))
        assert verdict.outcome == "promoted"
        assert len([r for r in verdict.rules if r.rule == "no harm"]) == 6
        assert "A rise of 0.0" in rule(verdict, "no harm", "group=a").sentence

    def test_a_slice_that_is_too_small_to_tell_says_so(self):
        found = of_losses(spread=1.5)
        group = np.array(["rare"] * 6 + ["common"] * (N - 6))
        found = dataclasses.replace(
            found, candidate=found.candidate.append_column("group", pa.array(group))
        )
        outcome = rule(judge(found, LOSS, ("group",)), "no harm", "group=rare")
        assert (outcome.passed, outcome.vetoes) == (True, False)
        assert "too small to tell" in outcome.sentence

    def test_a_slice_without_tokens_shows_nothing(self):
        found = self.found()
        tokens = pa.array(np.repeat([0, 5, 5], 100), pa.int32())
        found = dataclasses.replace(
            found,
            candidate=found.candidate.set_column(4, "tokens", tokens),
            baseline=found.baseline.set_column(4, "tokens", tokens),
        )
        outcome = rule(judge(found, LOSS, ("group",)), "no harm", "group=a")
        assert (outcome.passed, outcome.vetoes) == (True, False)


class TestFirstRun:
    def test_the_candidate_must_be_better_than_the_base(self):
        verdict = judge(of_losses(), LOSS, baseline="untrained base")
        assert verdict.outcome == "rejected"
        verdict = judge(of_losses(gain=0.2), LOSS, baseline="untrained base")
        assert verdict.outcome == "promoted"
        assert rule(verdict, "better").name == "loss better than the untrained base model"

    def test_floors_alone_can_decide(self):
        found = dataclasses.replace(of_losses(), baseline=None)
        rules = GateRecipe(metric="loss", floors={"loss": 3.0}, first_run="floors")
        assert judge(found, rules, baseline="none").outcome == "promoted"
        assert "no floor" in reasons(judge(found, LOSS, baseline="none"))


class TestBudgets:
    def test_latency_is_per_token_where_answers_are_written(self):
        rules = GateRecipe(metric="loss", max_latency_ms=5)
        found = of_losses(latency_ms=4.0)
        assert "ms per example" in rule(judge(found, rules), "budget").sentence
        written = found.candidate.append_column("generated", pa.array(["x"] * N))
        found = dataclasses.replace(found, candidate=written)
        assert rule(judge(found, rules), "budget").sentence == (
            "The latency is 4.0 ms per token, within the budget of 5 ms per token."
        )


class TestFailsClosed:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1.0])
    @pytest.mark.parametrize("model", ["candidate", "baseline"])
    def test_a_loss_that_is_no_loss_rejects(self, model, value):
        found = of_losses(gain=0.5)
        losses = getattr(found, model)["loss"].to_numpy().copy()
        losses[7] = value
        broken = getattr(found, model).set_column(3, "loss", pa.array(losses))
        assert f"The {model}'s loss is" in reasons(
            judge(dataclasses.replace(found, **{model: broken}), BETTER)
        )

    @pytest.mark.parametrize("column", language.COLUMNS)
    @pytest.mark.parametrize("model", ["candidate", "baseline"])
    def test_a_missing_column_rejects(self, model, column):
        found = of_losses(gain=0.5)
        broken = getattr(found, model).drop_columns([column])
        assert column in reasons(judge(dataclasses.replace(found, **{model: broken}), BETTER))

    def test_a_metric_that_was_not_measured_rejects(self):
        rules = GateRecipe(metric="loss", floors={"checks": 0.5})
        assert "lack a column each for checks" in reasons(judge(of_losses(), rules))
        empty = pa.nulls(N, pa.float64())
        found = of_losses()
        found = dataclasses.replace(
            found,
            candidate=found.candidate.append_column("checks", empty),
            baseline=found.baseline.append_column("checks", empty),
        )
        assert "share of checks is not a finite number" in reasons(judge(found, rules))

    def test_a_share_beyond_1_rejects(self):
        found = evidence(table(rouge_l=np.full(N, 1.5)), table(rouge_l=np.ones(N)))
        text = reasons(judge(found, GateRecipe(metric="rouge_l")))
        assert "ROUGE-L is not between 0 and 1" in text

    def test_an_example_that_only_one_model_answered_rejects(self):
        found = of_losses(gain=0.5)
        broken = dataclasses.replace(found, baseline=found.baseline.slice(0, N - 1))
        assert "The baseline has no answer to 1 test example." in reasons(judge(broken, BETTER))

    def test_other_tokens_cannot_be_compared_by_loss(self):
        found = of_losses(gain=0.5)
        other = table(found.baseline["loss"].to_numpy(), tokens=np.full(N, 9))
        found = dataclasses.replace(found, baseline=other)
        assert "a loss per token says nothing" in reasons(judge(found, BETTER))

    def test_answers_without_tokens_reject(self):
        nothing = table(tokens=np.zeros(N, int))
        assert "have no tokens" in reasons(judge(evidence(nothing, nothing), LOSS))

    def test_tokens_that_were_all_seen_leave_nothing_to_show(self):
        tokens = np.where(np.arange(N) < 10, 5, 0)
        same = table(tokens=tokens)
        rules = GateRecipe(metric="loss", floors={"loss": 9.0})
        verdict = judge(evidence(same, same, candidate_seen=seen(*range(10))), rules)
        assert verdict.outcome == "rejected"
        assert Verdict.model_validate_json(verdict.model_dump_json()).outcome == "rejected"

    def test_a_table_of_labels_is_none_of_scores(self):
        from tests.tasks.gate.test_decide import table as labels

        found = evidence(labels(np.ones(N, bool)), labels(np.ones(N, bool)))
        assert "tokens" in reasons(judge(found, LOSS))

    def test_seen_examples_are_left_out(self):
        verdict = judge(of_losses(candidate_seen=seen(0, 1, 2)), LOSS)
        assert (verdict.examples, verdict.dropped) == (N - 3, 3)


class TestMeans:
    def test_the_interval_of_normal_gains_is_students(self):
        gains = np.random.default_rng(5).normal(0.1, 1, 2000)
        found = bootstrap_mean.compare(gains, np.ones(2000), confidence=0.9)
        error = gains.std(ddof=1) / math.sqrt(2000)
        assert found.standard_error == pytest.approx(error)
        assert found.mean == pytest.approx(gains.mean())
        assert found.interval == pytest.approx(
            (gains.mean() - 1.645 * error, gains.mean() + 1.645 * error), abs=0.1 * error
        )

    def test_weights_count_as_repetitions(self):
        gains = np.random.default_rng(6).normal(size=50)
        weights = np.arange(50) % 3 + 1
        found = bootstrap_mean.compare(gains, weights)
        assert found.mean == pytest.approx(np.repeat(gains, weights).mean())
        assert bootstrap_mean.compare(gains, 10.0 * weights).p_value == found.p_value

    def test_a_small_sample_of_signs_is_exact(self):
        # All of 6 gains: 1 of 64 sign patterns is as extreme.
        found = bootstrap_mean.compare(
            np.ones(6) + np.arange(6) / 100, np.ones(6), resamples=99_999
        )
        assert found.p_value >= 1 / 64 - 0.002

    def test_a_p_value_is_never_0(self):
        assert bootstrap_mean.compare(np.full(200, 5.0), np.ones(200)).p_value == 1 / 10_000

    @pytest.mark.parametrize(
        ("gains", "weights"),
        [([], []), ([1.0], [0.0]), ([np.nan], [1.0]), ([1.0, 2.0], [1.0]), ([1.0], [-1.0])],
    )
    def test_what_is_no_sample_is_refused(self, gains, weights):
        with pytest.raises(ValueError):
            bootstrap_mean.compare(np.array(gains), np.array(weights))


class TestMetricsOf:
    def test_loss_is_by_tokens_and_the_others_by_examples(self):
        found = metrics.metrics_of(
            table([1.0, 3.0], 2, [1, 3], rouge_l=[0.2, 0.4], checks=pa.nulls(2, pa.float64())),
            "completion",
        )
        assert found == pytest.approx({"loss": 2.5, "perplexity": math.exp(2.5), "rouge_l": 0.3})

    def test_of_preferences(self):
        found = metrics.metrics_of(
            table([1.0, 3.0], 2, [1, 3], accuracy=[1.0, 0.5], rouge_l=[0.0, 1.0]), "preference"
        )
        assert found == pytest.approx({"accuracy": 0.75, "loss": 2.0, "rouge_l": 0.5})

    def test_of_nothing_there_are_none(self):
        with pytest.raises(BadData, match="no examples"):
            metrics.metrics_of(table(n=0), "completion")

    def test_slice_by_slice(self):
        whole = table(np.arange(60.0), 60, group=["x"] * 20 + ["y"] * 40)
        found = language.slice_metrics(whole, ("group", "length"), "completion")
        first = metrics.metrics_of(whole.slice(0, 20), "completion")
        assert found["group=x"] == {**first, "examples": 20}
        assert sum(found[f"length={s}"]["examples"] for s in rules_.LENGTHS) == 60


class TestSamples:
    def tables(self):
        written = {
            name: table(
                n=20,
                generated=[f"{name} {row}" for row in range(20)],
                reference=[f"right {row}" for row in range(20)],
                rouge_l=values,
            )
            for name, values in (
                ("ours", np.where(np.arange(20) == 9, 1.0, 0.5)),
                ("theirs", np.where(np.arange(20) == 4, 0.9, 0.5)),
            )
        }
        texts = {(row, row * 7): f"prompt {row} <b>|" for row in range(20)}
        return written["ours"], written["theirs"], texts

    def test_are_those_that_differ_most_and_the_first_of_the_others(self):
        ours, theirs, texts = self.tables()
        found = answer_samples.sample_answers(ours, theirs, texts, n=5)
        assert [row.candidate for row in found] == [
            "ours 9",
            "ours 4",
            "ours 0",
            "ours 1",
            "ours 2",
        ]
        assert found[0] == ("prompt 9 \\<b\\>|", "right 9", "theirs 9", "ours 9")

    def test_need_no_baseline(self):
        ours, _, texts = self.tables()
        found = answer_samples.sample_answers(ours, None, texts, n=2)
        assert [(row.baseline, row.candidate) for row in found] == [("", "ours 0"), ("", "ours 1")]

    def test_are_none_where_nothing_was_written(self):
        assert answer_samples.sample_answers(table(), None, {}) == []

    def test_are_cut(self):
        long = answer_samples.readable("word\n" * 100)
        assert len(long) <= answer_samples.CUT
        assert long.endswith("…")
        assert "\n" not in long
