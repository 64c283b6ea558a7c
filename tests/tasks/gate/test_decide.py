"""What the gate promotes, what it rejects, and what it says."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from tasks.contracts.errors import BadData
from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import Verdict
from tasks.evaluate import metrics
from tasks.gate import classification, decide, exact_rules, exact_tests, power
from tasks.gate import evidence as evidence_
from tasks.gate import rules as rules_

LABELS = ("news", "sport")
RELEASE = "release 7"


def table(right, labels=None, predicted=None, **columns):
    """Answers that are right where `right` says so; the hashes count up from 0."""
    right = np.asarray(right, bool)
    n = len(right)
    labels = np.array(LABELS)[np.arange(n) % 2] if labels is None else np.asarray(labels)
    if predicted is None:
        others = {"news": "sport"}
        predicted = [
            t if r else others.get(t, "news") for t, r in zip(labels.tolist(), right, strict=True)
        ]
    values = {
        "hash_hi": pa.array(np.arange(n, dtype=np.uint64)),
        "hash_lo": pa.array(np.arange(n, dtype=np.uint64) * 7),
        "label": pa.array(labels.tolist(), pa.string()),
        "predicted": pa.array(list(predicted), pa.string()),
        "correct": pa.array(right, pa.bool_()),
        "loss": pa.array(np.where(right, 0.1, 2.0), pa.float64()),
        "length": pa.array(np.arange(n, dtype=np.int32) % 60 + 5),
    }
    return pa.table({**values, **{name: pa.array(c) for name, c in columns.items()}})


def pairs(gained=0, lost=0, both=0, neither=0):
    """Whether (candidate, baseline) are right, for so many examples of each kind, well mixed."""
    kinds = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], [gained, lost, both, neither], axis=0)
    kinds = np.random.default_rng(0).permutation(kinds).astype(bool)
    return kinds[:, 0], kinds[:, 1]


def evidence(candidate, baseline=None, **changes):
    return evidence_.Evidence(
        **{
            "candidate": candidate,
            "baseline": baseline,
            "candidate_labels": LABELS,
            "baseline_labels": None if baseline is None else LABELS,
            "candidate_seen": np.empty((0, 2), np.uint64),
            "baseline_seen": np.empty((0, 2), np.uint64),
            "latency_ms": None,
            "size_bytes": 90_000_000,
            **changes,
        }
    )


def of_pairs(changes=None, **counts):
    candidate, baseline = pairs(**counts)
    return evidence(table(candidate), table(baseline), **(changes or {}))


def judge(found, rules=None, slices=(), baseline=RELEASE, look_number=1) -> Verdict:
    return decide.decide(
        found,
        rules or GateRecipe(),
        slices,
        candidate_digest="c" * 64,
        baseline=baseline,
        baseline_digest="" if baseline == "none" else "b" * 64,
        baseline_entry=0 if baseline == "none" else 7,
        test_digest="t" * 64,
        look_number=look_number,
    )


def rule(verdict, kind, slice_=""):
    (found,) = [r for r in verdict.rules if r.rule == kind and r.slice == slice_]
    return found


def reasons(verdict):
    assert verdict.outcome == "rejected"
    assert {r.rule for r in verdict.rules} == {"error"}
    return " ".join(r.sentence for r in verdict.rules)


def seen(*rows):
    return np.array([[row, row * 7] for row in sorted(rows)], np.uint64).reshape(-1, 2)


BETTER = GateRecipe(claim="better")
EQUAL = {"gained": 10, "lost": 10, "both": 560, "neither": 20}


class TestNotWorse:
    def test_an_equally_good_candidate_is_promoted(self):
        verdict = judge(of_pairs(gained=5, lost=3, both=314, neither=12))
        claim = rule(verdict, "not worse")
        assert verdict.outcome == "promoted"
        assert claim.p_value == exact_tests.noninferiority_p(5, 3, 334, 0.02)
        assert claim.interval == exact_tests.difference_interval(5, 3, 334, 0.9)
        assert claim.discordant == (5, 3)
        assert claim.difference == pytest.approx(2 / 334)

    def test_its_sentence_says_it_all(self):
        verdict = judge(of_pairs(gained=5, lost=3, both=314, neither=12))
        assert rule(verdict, "not worse").sentence == (
            "Accuracy is 0.955 against 0.949 for the baseline: not worse by more than 0.02 "
            "(difference +0.006, 90% interval −0.009 to +0.023, p = 0.0058, 334 examples, 5 gained "
            "and 3 lost). This test set would have shown a gain of 0.022 with 80% probability."
        )

    def test_a_candidate_that_may_be_worse_by_the_margin_is_rejected(self):
        verdict = judge(of_pairs(gained=10, lost=20, both=560, neither=10))
        assert verdict.outcome == "rejected"
        assert "a loss of more than 0.02 cannot be ruled out" in verdict.rules[1].sentence
        assert "p-value of at most 0.05 is asked for" in verdict.rules[1].sentence

    def test_a_wider_margin_lets_it_pass(self):
        found = of_pairs(gained=10, lost=20, both=560, neither=10)
        assert judge(found, GateRecipe(margin=0.06)).outcome == "promoted"

    def test_says_when_so_few_examples_could_never_show_it(self):
        claim = rule(judge(of_pairs(both=120)), "not worse")
        assert not claim.passed
        assert "not even two models that always agree could show it: that takes 149" in (
            claim.sentence
        )

    def test_other_metrics_are_compared_by_the_bootstrap(self):
        found = of_pairs(gained=10, lost=9, both=560, neither=21)
        claim = rule(judge(found, GateRecipe(metric="f1", margin=0.05)), "not worse")
        assert claim.passed
        assert claim.candidate == pytest.approx(metrics.metrics_of(found.candidate)["f1"])
        assert claim.baseline == pytest.approx(metrics.metrics_of(found.baseline)["f1"])
        assert claim.sentence.startswith("Macro F1 is 0.950 against 0.948 for the baseline")
        assert 0 < claim.detectable < 0.05

    def test_the_same_evidence_in_another_order_gives_the_same_verdict(self):
        found = of_pairs(**EQUAL)
        turned = np.random.default_rng(1).permutation(600)
        other = dataclasses.replace(found, candidate=found.candidate.take(turned))
        rules = GateRecipe(metric="f1", floors={"recall": 0.5})
        slices = ("label", "length")
        assert judge(other, rules, slices) == judge(found, rules, slices)


class TestBetter:
    def test_a_candidate_with_many_more_gains_is_promoted(self):
        verdict = judge(of_pairs(gained=30, lost=10, both=540, neither=20), BETTER)
        assert verdict.outcome == "promoted"
        assert rule(verdict, "better").p_value == exact_tests.superiority_p(30, 10)
        assert "better, beyond chance" in rule(verdict, "better").sentence

    @given(st.integers(0, 60))
    @settings(max_examples=20)
    def test_ties_do_not_prove_better(self, discordant):
        verdict = judge(
            of_pairs(gained=discordant, lost=discordant, both=600 - 2 * discordant), BETTER
        )
        assert verdict.outcome == "rejected"
        assert rule(verdict, "better").difference == 0

    def test_a_few_more_gains_than_losses_are_not_beyond_chance(self):
        verdict = judge(of_pairs(gained=14, lost=10, both=576), BETTER)
        assert verdict.outcome == "rejected"
        assert "not shown to be better" in rule(verdict, "better").sentence

    def test_more_confidence_asks_for_more(self):
        found = of_pairs(gained=24, lost=10, both=566)
        assert judge(found, BETTER).outcome == "promoted"
        strict = GateRecipe(claim="better", confidence=0.999)
        assert judge(found, strict).outcome == "rejected"

    @given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400))
    @settings(max_examples=30)
    def test_pairs_on_which_both_are_right_do_not_change_its_p_value(self, gained, lost, more):
        few = of_pairs(gained=gained, lost=lost, both=120)
        many = of_pairs(gained=gained, lost=lost, both=120 + more)
        one, other = (rule(judge(found, BETTER), "better") for found in (few, many))
        assert one.p_value == other.p_value

    @given(st.integers(0, 40), st.integers(0, 40))
    @settings(max_examples=20)
    def test_swapping_the_models_flips_the_sign(self, gained, lost):
        found = of_pairs(gained=gained, lost=lost, both=200)
        swapped = dataclasses.replace(found, candidate=found.baseline, baseline=found.candidate)
        one, other = (rule(judge(e, BETTER), "better") for e in (found, swapped))
        assert one.difference == -other.difference
        assert one.discordant == other.discordant[::-1]
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-7)
        assert not (one.passed and other.passed)

    def test_without_discordant_pairs_what_could_be_shown_is_still_said(self):
        claim = rule(judge(of_pairs(both=300), BETTER), "better")
        assert claim.detectable == power.detectable_gain(300, exact_rules.STATED_DISCORDANCE)


class TestFailsClosed:
    @given(
        st.sampled_from(["candidate", "baseline"]),
        st.integers(0, 599),
        st.sampled_from([np.nan, np.inf, -np.inf]),
        st.sampled_from(["better", "not worse"]),
        st.sampled_from(["accuracy", "f1"]),
    )
    @settings(max_examples=30)
    def test_a_loss_that_is_no_number_never_promotes(self, model, row, value, claim, metric):
        found = of_pairs(gained=60, both=540)
        broken = getattr(found, model)
        losses = broken.column("loss").to_numpy().copy()
        losses[row] = value
        broken = broken.set_column(5, "loss", pa.array(losses))
        verdict = judge(
            dataclasses.replace(found, **{model: broken}), GateRecipe(claim=claim, metric=metric)
        )
        assert f"The {model}'s loss is not a finite number on 1 test example." in reasons(verdict)

    def test_a_missing_loss_is_no_number(self):
        found = of_pairs(gained=60, both=540)
        losses = pa.array([None] + [0.1] * 599, pa.float64())
        broken = found.candidate.set_column(5, "loss", losses)
        assert "loss is not a finite number" in reasons(
            judge(dataclasses.replace(found, candidate=broken))
        )

    def test_a_mean_loss_that_overflows_rejects(self):
        found = of_pairs(gained=60, both=540)
        broken = found.candidate.set_column(5, "loss", pa.array([1e308] * 600))
        assert "mean loss" in reasons(judge(dataclasses.replace(found, candidate=broken)))

    @pytest.mark.parametrize("column", classification.COLUMNS)
    @pytest.mark.parametrize("model", ["candidate", "baseline"])
    def test_a_missing_column_rejects(self, model, column):
        found = of_pairs(gained=60, both=540)
        broken = getattr(found, model).drop_columns([column])
        assert column in reasons(judge(dataclasses.replace(found, **{model: broken})))

    @pytest.mark.parametrize("column", [c for c in classification.COLUMNS if c != "loss"])
    def test_an_empty_value_rejects(self, column):
        found = of_pairs(gained=60, both=540)
        place = found.candidate.column_names.index(column)
        values = [None, *found.candidate.column(column).to_pylist()[1:]]
        kind = found.candidate.schema.field(column).type
        broken = found.candidate.set_column(place, column, pa.array(values, kind))
        text = reasons(judge(dataclasses.replace(found, candidate=broken)))
        assert f"empty values in {column}" in text

    def test_a_column_of_the_wrong_type_rejects(self):
        found = of_pairs(gained=60, both=540)
        broken = found.candidate.set_column(5, "loss", pa.array(["low"] * 600))
        text = reasons(judge(dataclasses.replace(found, candidate=broken)))
        assert "wrong type: loss" in text

    def test_an_empty_test_set_rejects(self):
        found = of_pairs()
        assert "the test set is empty" in reasons(judge(found))

    def test_a_missing_baseline_rejects(self):
        found = dataclasses.replace(of_pairs(gained=60, both=540), baseline=None)
        assert "answers of the baseline (release 7) are missing" in reasons(judge(found))

    def test_a_baseline_that_should_not_be_there_rejects(self):
        found = of_pairs(gained=60, both=540)
        rules = GateRecipe(floors={"accuracy": 0.1})
        assert "without a baseline" in reasons(judge(found, rules, baseline="none"))

    @pytest.mark.parametrize("model", ["candidate", "baseline"])
    def test_an_example_that_only_one_model_answered_rejects(self, model):
        found = of_pairs(gained=60, both=540)
        broken = dataclasses.replace(found, **{model: getattr(found, model).slice(0, 599)})
        assert f"The {model} has no answer to 1 test example." in reasons(judge(broken))

    def test_two_answers_to_one_example_reject(self):
        found = of_pairs(gained=60, both=540)
        twice = pa.concat_tables([found.candidate, found.candidate.slice(0, 3)])
        text = reasons(judge(dataclasses.replace(found, candidate=twice)))
        assert "more than one answer to 3 test examples" in text

    def test_different_truths_reject(self):
        right = np.ones(200, bool)
        found = evidence(table(right), table(right, labels=["sport"] * 200))
        assert "scored against different labels" in reasons(judge(found))

    def test_a_count_of_right_answers_that_is_not_so_rejects(self):
        found = of_pairs(gained=60, both=500, neither=40)
        flattered = found.candidate.set_column(4, "correct", pa.array([True] * 600))
        text = reasons(judge(dataclasses.replace(found, candidate=flattered)))
        assert "contradict their own count" in text

    def test_answers_with_unknown_labels_reject(self):
        found = of_pairs(gained=60, both=500, neither=40)
        text = reasons(judge(dataclasses.replace(found, candidate_labels=("news",))))
        assert "should not know: sport" in text

    def test_a_baseline_of_unknown_labels_rejects(self):
        found = of_pairs({"baseline_labels": None}, gained=60, both=540)
        assert "not known which labels" in reasons(judge(found))

    def test_a_baseline_that_knows_no_label_of_the_test_set_rejects(self):
        found = of_pairs({"baseline_labels": ("weather",)}, gained=60, both=540)
        assert "has a label that the baseline knows" in reasons(judge(found))

    def test_hashes_that_are_no_pairs_reject(self):
        found = of_pairs({"candidate_seen": np.zeros(5, np.uint64)}, gained=60, both=540)
        assert "what the candidate has seen" in reasons(judge(found))

    def test_a_missing_slicing_column_rejects(self):
        assert "author" in reasons(judge(of_pairs(gained=60, both=540), slices=("author",)))

    def test_an_empty_slicing_column_rejects(self):
        right, other = pairs(gained=60, both=540)
        empty = table(right, author=pa.array([None] * 600, pa.string()))
        text = reasons(judge(evidence(empty, table(other)), slices=("author",)))
        assert "slicing column author is empty" in text

    @given(st.data())
    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    def test_damaged_evidence_is_judged_or_rejected_but_never_raises(self, data):
        found = of_pairs(gained=20, lost=5, both=150, neither=25)
        model = data.draw(st.sampled_from(["candidate", "baseline"]))
        damaged = getattr(found, model)
        column = data.draw(st.sampled_from(classification.COLUMNS))
        place = damaged.column_names.index(column)
        action = data.draw(st.sampled_from(["drop", "null", "text", "reverse", "cut", "twice"]))
        values = damaged.column(column)
        if action == "drop":
            damaged = damaged.remove_column(place)
        elif action == "null":
            damaged = damaged.set_column(place, column, pa.nulls(200, values.type))
        elif action == "text":
            damaged = damaged.set_column(place, column, pa.array(["?"] * 200))
        elif action == "reverse":
            turned = pa.array(values.to_pylist()[::-1], values.type)
            damaged = damaged.set_column(place, column, turned)
        elif action == "cut":
            damaged = damaged.slice(0, data.draw(st.integers(0, 199)))
        else:
            damaged = damaged.append_column(column, values)
        verdict = judge(dataclasses.replace(found, **{model: damaged}), BETTER, ("label", "length"))
        harmless = action == "reverse" and column in ("length", "loss")
        assert harmless or verdict.outcome == "rejected"

    def test_every_verdict_survives_json(self):
        for found in (of_pairs(**EQUAL), of_pairs()):
            verdict = judge(found, slices=("label", "length"))
            assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


class TestSeenExamples:
    def test_examples_that_either_model_has_seen_are_left_out_and_counted(self):
        found = of_pairs(
            {"candidate_seen": seen(0, 1, 2, 9999), "baseline_seen": seen(2, 3)}, **EQUAL
        )
        verdict = judge(found)
        assert (verdict.examples, verdict.dropped) == (596, 4)
        assert "4 were left out because a model had seen them" in (
            rule(verdict, "enough examples").sentence
        )

    def test_both_halves_of_the_hash_must_match(self):
        half = np.array([[1, 8], [2, 14]], np.uint64)
        assert judge(of_pairs({"candidate_seen": half}, **EQUAL)).dropped == 1

    def test_what_was_gained_by_memorising_does_not_count(self):
        right, other = pairs(gained=60, both=540)
        memorised = seen(*np.flatnonzero(right & ~other).tolist())
        found = evidence(table(right), table(other), candidate_seen=memorised)
        assert rule(judge(found, BETTER), "better").discordant == (0, 0)
        assert judge(found, BETTER).outcome == "rejected"

    def test_nothing_left_rejects(self):
        found = of_pairs({"baseline_seen": seen(*range(600))}, **EQUAL)
        verdict = judge(found)
        assert "All 600 test examples had been seen" in reasons(verdict)
        assert (verdict.examples, verdict.dropped) == (0, 600)

    def test_too_few_left_reject(self):
        found = of_pairs({"baseline_seen": seen(*range(550))}, gained=60, both=540)
        verdict = judge(found, GateRecipe(margin=0.2))
        enough = rule(verdict, "enough examples")
        assert not enough.passed
        assert "50 test examples count, but at least 150 are asked for" in enough.sentence
        assert verdict.outcome == "rejected"

    def test_unknown_is_said_to_be_unknown(self):
        verdict = judge(of_pairs({"baseline_seen": None}, **EQUAL))
        assert verdict.baseline_seen == "unknown"
        assert "What the baseline had seen is not known" in (
            rule(verdict, "enough examples").sentence
        )
        assert judge(of_pairs(**EQUAL)).baseline_seen == "known"


class TestFloors:
    def test_a_candidate_above_every_floor_is_promoted(self):
        rules = GateRecipe(floors={"accuracy": 0.95, "f1": 0.9})
        verdict = judge(of_pairs(**EQUAL), rules)
        assert verdict.outcome == "promoted"
        accuracy, f1 = (r for r in verdict.rules if r.rule == "floor")
        assert accuracy.interval == exact_tests.wilson_interval(570, 600)
        assert accuracy.sentence == (
            "Accuracy is 0.950, at least the floor of 0.95 (95% interval 0.930 to 0.965, "
            "600 examples)."
        )
        assert f1.interval[0] < f1.candidate < f1.interval[1]

    def test_a_candidate_below_a_floor_is_rejected_however_much_better_it_is(self):
        found = of_pairs(gained=200, both=300, neither=100)
        verdict = judge(found, GateRecipe(claim="better", floors={"accuracy": 0.9}))
        assert rule(verdict, "better").passed
        assert verdict.outcome == "rejected"
        assert "below the floor" in rule(verdict, "floor").sentence

    def test_a_near_miss_is_shown_with_as_many_digits_as_it_takes(self):
        found = of_pairs(both=8999, neither=1001)
        sentence = rule(judge(found, GateRecipe(floors={"accuracy": 0.9})), "floor").sentence
        assert "is 0.8999, below the floor of 0.9 " in sentence

    @given(st.integers(0, 200), st.integers(0, 200), st.sampled_from(["accuracy", "recall", "f1"]))
    @settings(max_examples=25, deadline=None)
    def test_a_higher_floor_never_turns_a_rejection_into_a_promotion(self, both, gained, metric):
        found = of_pairs(both=both, gained=gained, neither=100)
        outcomes = [
            judge(found, GateRecipe(floors={metric: floor})).outcome for floor in (0.4, 0.6, 0.8)
        ]
        assert sorted(outcomes) == outcomes

    def test_all_examples_count_for_floors_those_of_new_labels_too(self):
        labels = ["news", "sport", "weather"] * 200
        right = np.array(labels) != "weather"
        found = evidence(
            table(right, labels),
            table(right, labels),
            candidate_labels=(*LABELS, "weather"),
        )
        floor = rule(judge(found, GateRecipe(floors={"accuracy": 0.9})), "floor")
        assert floor.candidate == pytest.approx(2 / 3)
        assert floor.examples == 600


class TestNewLabels:
    LABELS = ("news", "sport", "weather")

    def found(self, weather_right, weather=100, **changes):
        """Equal models on 300 old examples; the candidate alone knows weather."""
        labels = ["news", "sport", "news"] * 100 + ["weather"] * weather
        ours = np.r_[np.ones(300, bool), np.arange(weather) < weather_right]
        theirs = np.r_[np.ones(300, bool), np.zeros(weather, bool)]
        changes = {"candidate_labels": self.LABELS, **changes}
        return evidence(table(ours, labels), table(theirs, labels), **changes)

    def test_a_learnt_new_label_is_promoted_by_its_own_floor(self):
        verdict = judge(self.found(80))
        assert verdict.outcome == "promoted"
        floor = rule(verdict, "floor", "label=weather")
        assert (floor.metric, floor.candidate, floor.examples) == ("recall", 0.8, 100)
        assert floor.interval == exact_tests.wilson_interval(80, 100)
        assert floor.sentence.startswith("Recall on the new label weather is 0.800, at least")

    def test_a_new_label_below_its_floor_is_rejected(self):
        verdict = judge(self.found(40))
        assert verdict.outcome == "rejected"
        assert not rule(verdict, "floor", "label=weather").passed

    def test_new_labels_stay_outside_the_claim(self):
        verdict = judge(self.found(100), BETTER)
        assert rule(verdict, "better").discordant == (0, 0)
        assert rule(verdict, "better").examples == verdict.examples == 300

    def test_new_labels_are_no_slice_of_the_comparison(self):
        verdict = judge(self.found(80), slices=("label",))
        assert [r.slice for r in verdict.rules if r.rule == "no harm"] == [
            "label=news",
            "label=sport",
        ]

    def test_the_baselines_loss_on_labels_it_never_knew_does_not_matter(self):
        found = self.found(80)
        losses = np.where(np.arange(400) < 300, 0.5, np.inf)
        theirs = found.baseline.set_column(5, "loss", pa.array(losses))
        assert judge(dataclasses.replace(found, baseline=theirs)).outcome == "promoted"

    def test_a_new_label_without_examples_is_rejected_until_its_floor_is_lifted(self):
        found = self.found(0, weather=0)
        verdict = judge(found)
        assert verdict.outcome == "rejected"
        assert "nothing shows that the candidate has learnt it" in (
            rule(verdict, "floor", "label=weather").sentence
        )
        assert judge(found, GateRecipe(new_label_floor=0)).outcome == "promoted"

    def test_examples_of_new_labels_do_not_help_to_reach_the_least_number(self):
        rules = GateRecipe(min_examples=350)
        assert not rule(judge(self.found(80), rules), "enough examples").passed


class TestBudgets:
    @pytest.mark.parametrize(("latency", "passed"), [(4.0, True), (5.0, True), (5.1, False)])
    def test_latency(self, latency, passed):
        found = of_pairs({"latency_ms": latency}, **EQUAL)
        verdict = judge(found, GateRecipe(max_latency_ms=5))
        assert (verdict.outcome == "promoted") == passed
        assert rule(verdict, "budget").sentence == (
            f"The latency is {latency:.1f} ms per example, {'within' if passed else 'above'} the "
            "budget of 5 ms per example."
        )

    @pytest.mark.parametrize("latency", [None, np.nan, np.inf, 0.0])
    def test_a_latency_that_was_not_measured_rejects(self, latency):
        verdict = judge(of_pairs({"latency_ms": latency}, **EQUAL), GateRecipe(max_latency_ms=5))
        assert verdict.outcome == "rejected"
        assert "was not measured" in rule(verdict, "budget").sentence

    @pytest.mark.parametrize(("limit", "passed"), [(90, True), (89.99, False)])
    def test_size(self, limit, passed):
        verdict = judge(of_pairs(**EQUAL), GateRecipe(max_size_mb=limit))
        assert (verdict.outcome == "promoted") == passed
        assert rule(verdict, "budget").candidate == 90

    def test_no_budget_no_rule(self):
        assert not [r for r in judge(of_pairs(**EQUAL)).rules if r.rule == "budget"]


class TestSlices:
    def found(self, lost, size=200, gained=0, groups=5):
        """Equal models, but for one group of five; `gained` makes up for it in the others."""
        n = size * groups
        group = np.repeat([f"g{i}" for i in range(groups)], size)
        ours, theirs = np.ones(n, bool), np.ones(n, bool)
        ours[:lost] = False
        theirs[size : size + gained] = False
        return evidence(table(ours, group=group), table(theirs))

    def test_significant_harm_to_one_slice_vetoes(self):
        verdict = judge(self.found(12, gained=12), slices=("group",))
        harmed = rule(verdict, "no harm", "group=g0")
        assert rule(verdict, "not worse").passed
        assert (harmed.passed, harmed.vetoes) == (False, True)
        assert harmed.p_value == pytest.approx(5 * 0.5**12)
        assert verdict.outcome == "rejected"
        assert "On group g0 accuracy is 0.940 against 1.000 for the baseline: significantly" in (
            harmed.sentence
        )

    def test_a_loss_that_chance_explains_does_not_veto(self):
        verdict = judge(self.found(5, gained=5), slices=("group",))
        outcome = rule(verdict, "no harm", "group=g0")
        assert (outcome.passed, outcome.vetoes) == (True, True)
        assert outcome.p_value > 0.05 > 0.5**5
        assert verdict.outcome == "promoted"
        assert "would have shown with 80% probability" in outcome.sentence

    def test_a_slice_that_is_too_small_to_tell_says_so_and_does_not_veto(self):
        ours, theirs = pairs(both=600)
        ours[0] = False
        group = np.array(["rare"] * 10 + ["common"] * 590)
        verdict = judge(evidence(table(ours, group=group), table(theirs)), slices=("group",))
        outcome = rule(verdict, "no harm", "group=rare")
        assert (outcome.passed, outcome.vetoes) == (True, False)
        assert "too small to tell" in outcome.sentence
        assert verdict.outcome == "promoted"

    def test_a_small_slice_that_collapses_vetoes_all_the_same(self):
        ours, theirs = pairs(both=600)
        ours[:10] = False
        theirs[300:310] = False
        group = np.array(["rare"] * 10 + ["common"] * 590)
        verdict = judge(evidence(table(ours, group=group), table(theirs)), slices=("group",))
        assert rule(verdict, "no harm", "group=rare").vetoes
        assert verdict.outcome == "rejected"

    def test_a_recipe_can_take_the_veto_away(self):
        rules = GateRecipe(slice_veto=False)
        verdict = judge(self.found(12, gained=12), rules, ("group",))
        harmed = rule(verdict, "no harm", "group=g0")
        assert (harmed.passed, harmed.vetoes) == (False, False)
        assert "noted but does not veto" in harmed.sentence
        assert verdict.outcome == "promoted"

    def test_length_is_cut_in_three_at_its_terciles(self):
        verdict = judge(of_pairs(**EQUAL), slices=("length",))
        cut = [r for r in verdict.rules if r.rule == "no harm"]
        assert [r.slice for r in cut] == ["length=short", "length=medium", "length=long"]
        assert [r.examples for r in cut] == [200, 200, 200]
        assert cut[0].sentence.startswith("On short texts (up to 24 tokens) accuracy is 0.940")

    def test_texts_of_one_length_are_one_slice(self):
        ours, theirs = pairs(**EQUAL)
        found = evidence(table(ours), table(theirs))
        same = found.candidate.set_column(6, "length", pa.array([9] * 600, pa.int32()))
        verdict = judge(dataclasses.replace(found, candidate=same), slices=("length",))
        assert [r.slice for r in verdict.rules if r.rule == "no harm"] == ["length=short"]

    def test_a_slice_of_which_every_example_was_seen_rejects(self):
        group = np.array(["rare"] * 10 + ["common"] * 590)
        right = np.ones(600, bool)
        changes = {"candidate_seen": seen(*range(10))}
        found = evidence(table(right, group=group), table(right), **changes)
        verdict = judge(found, slices=("group",))
        assert verdict.outcome == "rejected"
        assert "Every test example of group rare had been seen" in (
            rule(verdict, "error", "group=rare").sentence
        )
        relaxed = judge(found, GateRecipe(slice_veto=False), ("group",))
        assert relaxed.outcome == "promoted"

    def test_a_known_label_without_examples_is_reported_as_unknown(self):
        labels = (*LABELS, "weather")
        changes = {"candidate_labels": labels, "baseline_labels": labels}
        verdict = judge(of_pairs(changes, **EQUAL), slices=("label",))
        outcome = rule(verdict, "no harm", "label=weather")
        assert (outcome.passed, outcome.vetoes, outcome.examples) == (True, False, 0)
        assert verdict.outcome == "promoted"

    def test_empty_values_are_a_slice_too(self):
        ours, theirs = pairs(**EQUAL)
        author = pa.array([None] * 300 + ["ann"] * 300, pa.string())
        verdict = judge(evidence(table(ours, author=author), table(theirs)), slices=("author",))
        assert rule(verdict, "no harm", "author=(none)").examples == 300


class TestUntrainedBase:
    def test_the_candidate_must_be_better_whatever_the_recipe_claims(self):
        rules = GateRecipe(claim="not worse", margin=0.2)
        verdict = judge(of_pairs(**EQUAL), rules, baseline="untrained base")
        assert verdict.outcome == "rejected"
        claim = rule(verdict, "better")
        assert claim.name == "accuracy better than the untrained base model"

    def test_a_better_candidate_is_promoted_though_it_lost_a_slice(self):
        right = np.ones(600, bool)
        labels = np.array(["news", "sport"] * 300)
        always_sport = labels == "sport"
        ours = np.where(always_sport, np.arange(600) % 10 != 1, right)
        found = evidence(table(ours, labels), table(always_sport, labels))
        verdict = judge(found, slices=("label",), baseline="untrained base")
        harmed = rule(verdict, "no harm", "label=sport")
        assert (harmed.passed, harmed.vetoes) == (False, False)
        assert verdict.outcome == "promoted"


class TestNoBaseline:
    def found(self, right=190, wrong=10):
        return evidence(table(np.arange(right + wrong) < right))

    def test_the_floors_alone_decide(self):
        rules = GateRecipe(floors={"accuracy": 0.9}, first_run="floors")
        verdict = judge(self.found(), rules, ("label",), baseline="none")
        assert verdict.outcome == "promoted"
        assert [r.rule for r in verdict.rules] == ["enough examples", "floor"]
        assert verdict.baseline_seen == "no baseline"
        low = judge(self.found(85, 15), rules, baseline="none")
        assert low.outcome == "rejected"

    def test_without_floors_nothing_is_promoted(self):
        assert "no floor" in reasons(judge(self.found(), baseline="none"))

    def test_budgets_count(self):
        rules = GateRecipe(floors={"accuracy": 0.5}, max_size_mb=1)
        assert judge(self.found(), rules, baseline="none").outcome == "rejected"


class TestSummary:
    def test_names_what_was_shown(self):
        assert judge(of_pairs(**EQUAL)).summary == (
            "Promoted against release 7, on 600 examples: accuracy not worse than the baseline by "
            "more than 0.02."
        )

    def test_names_every_rule_that_does_not_hold(self):
        rules = GateRecipe(floors={"accuracy": 0.99}, max_size_mb=1)
        assert judge(of_pairs(**EQUAL), rules).summary == (
            "Rejected against release 7, on 600 examples, for want of: accuracy at least 0.99; "
            "size at most 1 MB."
        )

    def test_gives_the_reason_when_nothing_could_be_judged(self):
        assert judge(of_pairs()).summary.startswith(
            "Rejected against release 7: The candidate has no answers: the test set is empty."
        )

    def test_says_how_often_the_test_set_has_been_used(self):
        assert "has now served" not in judge(of_pairs(**EQUAL)).summary
        verdict = judge(of_pairs(**EQUAL), look_number=4)
        assert "This test set has now served 4 verdicts" in verdict.summary
        assert verdict.look_number == 4


class TestMetricsOf:
    def test_macro_averages_are_over_the_labels_in_truth(self):
        truth = ["a", "a", "b", "b", "b"]
        predicted = ["a", "z", "b", "b", "a"]
        found = metrics.metrics_of(
            table([True, False, True, True, False], labels=truth, predicted=predicted)
        )
        options = {"labels": ["a", "b"], "average": "macro", "zero_division": 0}
        assert found == pytest.approx(
            {
                "accuracy": accuracy_score(truth, predicted),
                "precision": precision_score(truth, predicted, **options),
                "recall": recall_score(truth, predicted, **options),
                "f1": f1_score(truth, predicted, **options),
                "loss": (3 * 0.1 + 2 * 2.0) / 5,
            }
        )
        assert found["recall"] == pytest.approx((1 / 2 + 2 / 3) / 2)

    def test_a_loss_that_is_no_number_shows(self):
        broken = table([True, False]).set_column(5, "loss", pa.array([0.1, np.nan]))
        assert np.isnan(metrics.metrics_of(broken)["loss"])

    def test_of_nothing_there_are_none(self):
        with pytest.raises(BadData, match="no examples"):
            metrics.metrics_of(table([]))


class TestSliceMetrics:
    def test_a_label_is_held_against_the_rest(self):
        truth = ["a", "a", "b", "b", "b"]
        predicted = ["a", "b", "b", "b", "a"]
        found = classification.slice_metrics(
            table([True, False, True, True, False], labels=truth, predicted=predicted), ("label",)
        )
        assert set(found) == {"label=a", "label=b"}
        assert found["label=b"]["precision"] == pytest.approx(2 / 3)
        assert found["label=b"]["recall"] == pytest.approx(2 / 3)
        assert found["label=b"]["accuracy"] == pytest.approx(2 / 3)
        assert found["label=a"]["precision"] == pytest.approx(1 / 2)
        assert found["label=b"]["examples"] == 3

    def test_other_slices_are_metrics_of_their_rows(self):
        right = np.arange(60) % 4 != 0
        whole = table(right, group=["x"] * 20 + ["y"] * 40)
        found = classification.slice_metrics(whole, ("group", "length"))
        assert found["group=x"] == {**metrics.metrics_of(whole.slice(0, 20)), "examples": 20}
        assert sum(found[f"length={s}"]["examples"] for s in rules_.LENGTHS) == 60
