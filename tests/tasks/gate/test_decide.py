"""Which candidates are promoted and which are rejected."""

import dataclasses

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import Verdict
from tasks.gate import (
    classification,
)
from tests.tasks.evaluate.samples import label_table
from tests.tasks.gate.samples import (
    BETTER,
    EQUAL,
    decide_on,
    hashes_of,
    label_evidence,
    paired_labels,
    paired_outcomes,
    reasons,
    rule,
)


class TestSeenExamples:
    def test_examples_that_either_model_saw_are_excluded_and_counted(self):
        found = paired_labels(
            {"candidate_seen": hashes_of(0, 1, 2, 9999), "baseline_seen": hashes_of(2, 3)}, **EQUAL
        )
        verdict = decide_on(found)
        assert (verdict.examples, verdict.dropped) == (596, 4)
        assert "4 were excluded because a model saw them" in (
            rule(verdict, "enough examples").sentence
        )

    def test_both_halves_of_the_hash_must_match(self):
        half = np.array([[1, 8], [2, 14]], np.uint64)
        assert decide_on(paired_labels({"candidate_seen": half}, **EQUAL)).dropped == 1

    def test_gains_on_memorized_examples_do_not_count(self):
        right, other = paired_outcomes(gained=60, both=540)
        memorized = hashes_of(*np.flatnonzero(right & ~other).tolist())
        found = label_evidence(label_table(right), label_table(other), candidate_seen=memorized)
        assert rule(decide_on(found, BETTER), "better").discordant == (0, 0)
        assert decide_on(found, BETTER).outcome == "rejected"

    def test_no_example_left_rejects(self):
        found = paired_labels({"baseline_seen": hashes_of(*range(600))}, **EQUAL)
        verdict = decide_on(found)
        assert "A model saw all 600 test examples in training" in reasons(verdict)
        assert (verdict.examples, verdict.dropped) == (0, 600)


class TestUntrainedBase:
    def test_candidate_must_be_better_whatever_the_recipe_claims(self):
        rules = GateRecipe(claim="not worse", margin=0.2)
        verdict = decide_on(paired_labels(**EQUAL), rules, baseline="untrained base")
        assert verdict.outcome == "rejected"
        names = [each.name for each in verdict.rules if each.rule == "better"]
        assert names == [
            "accuracy better than the untrained base model",
            "accuracy better than always answering 'news'",
        ]

    def test_better_candidate_is_promoted_even_if_a_slice_is_worse(self):
        right = np.ones(600, bool)
        labels = np.array(["news", "sport"] * 300)
        always_sport = labels == "sport"
        ours = np.where(always_sport, np.arange(600) % 10 != 1, right)
        found = label_evidence(label_table(ours, labels), label_table(always_sport, labels))
        verdict = decide_on(found, slices=("label",), baseline="untrained base")
        assert "no harm" not in [each.rule for each in verdict.rules]
        assert verdict.outcome == "promoted"


class TestNoBaseline:
    def found(self, right=190, wrong=10):
        return label_evidence(label_table(np.arange(right + wrong) < right))

    def test_floors_decide(self):
        rules = GateRecipe(floors={"accuracy": 0.9}, first_run="floors")
        verdict = decide_on(self.found(), rules, ("label",), baseline="none")
        assert verdict.outcome == "promoted"
        assert [r.rule for r in verdict.rules] == [
            "enough examples",
            "better",
            *["floor"] * 3,
        ]
        assert verdict.baseline_seen == "no baseline"
        low = decide_on(self.found(85, 15), rules, baseline="none")
        assert low.outcome == "rejected"

    def test_without_floors_nothing_is_promoted(self):
        assert "neither a baseline nor a floor" in reasons(decide_on(self.found(), baseline="none"))

    def test_budgets_count(self):
        rules = GateRecipe(floors={"accuracy": 0.5}, max_size_mb=1)
        assert decide_on(self.found(), rules, baseline="none").outcome == "rejected"


class TestTheVerdict:
    def test_does_not_depend_on_the_order_of_rows(self):
        found = paired_labels(**EQUAL)
        turned = np.random.default_rng(1).permutation(600)
        other = dataclasses.replace(found, candidate=found.candidate.take(turned))
        rules = GateRecipe(metric="f1", floors={"recall": 0.5})
        slices = ("label", "length")
        assert decide_on(other, rules, slices) == decide_on(found, rules, slices)

    @given(st.data())
    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    def test_damaged_evidence_never_raises(self, data):
        found = paired_labels(gained=20, lost=5, both=150, neither=25)
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
        verdict = decide_on(
            dataclasses.replace(found, **{model: damaged}), BETTER, ("label", "length")
        )
        harmless = action == "reverse" and column in ("length", "loss")
        assert harmless or verdict.outcome == "rejected"

    def test_survives_json(self):
        for found in (paired_labels(**EQUAL), paired_labels()):
            verdict = decide_on(found, slices=("label", "length"))
            assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
