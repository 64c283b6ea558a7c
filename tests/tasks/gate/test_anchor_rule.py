"""The rule on the anchor, in verdicts."""

import dataclasses

import numpy as np
import pytest

from tasks.contracts.recipe_evaluation import GateRecipe
from tasks.contracts.verdict import AnchorState
from tasks.gate.anchor_rule import Anchor
from tests.tasks.evaluate.samples import LABELS, label_table
from tests.tasks.gate.samples import decide_on, label_evidence, paired_losses, rule

N = 1000
STATE = AnchorState(version="1a2b", entry=2)
RULES = GateRecipe(margin=0.03)


def right(correct, n=N):
    """Which answers are right: all but the last."""
    return np.arange(n) < correct


def evidence(candidate=850, baseline=850, **changes):
    return label_evidence(label_table(right(candidate)), label_table(right(baseline)), **changes)


def anchored(correct=850, **changes):
    scores = label_table(right(correct))
    return Anchor(**{"state": STATE, "scores": scores, "labels": LABELS, **changes})


def verdict_of(anchor, rules=RULES, **counts):
    return decide_on(evidence(**counts), rules, anchor=anchor)


class TestAnchor:
    def test_small_losses_that_add_up_are_stopped(self):
        verdict = verdict_of(anchored(900), candidate=840, baseline=850)
        assert rule(verdict, "not worse").passed
        found = rule(verdict, "anchor")
        assert (found.passed, found.difference) == (False, pytest.approx(-0.06))
        assert verdict.outcome == "rejected"
        assert "Accuracy is 0.840 against 0.900 for the anchor 1a2b: a drop of more than" in (
            found.sentence
        )
        assert "accuracy not worse than the anchor 1a2b by more than 0.03" in verdict.summary
        assert verdict.anchor == STATE

    def test_a_loss_within_both_margins_passes_and_is_said_to_be_one(self):
        verdict = verdict_of(anchored(850), candidate=838)
        assert verdict.outcome == "promoted"
        assert "worse beyond chance, within the margin" in rule(verdict, "anchor").sentence
        assert "worse beyond chance, within the margin" in rule(verdict, "not worse").sentence
        assert verdict.anchor.moves == ""

    def test_has_a_margin_of_its_own(self):
        rules = RULES.model_copy(update={"anchor_margin": 0.1})
        assert verdict_of(anchored(900), rules, candidate=840).outcome == "promoted"

    def test_moves_to_a_candidate_that_is_better_beyond_chance(self):
        verdict = verdict_of(anchored(820), candidate=850)
        assert verdict.anchor.moves == "it is better than version 1a2b beyond chance"
        assert "the candidate is the anchor" in rule(verdict, "anchor").sentence

    def test_does_not_move_for_a_gain_that_chance_explains(self):
        ours, theirs = right(850), right(850)
        ours[850:870], ours[:8] = True, False  # 20 gained, 8 lost: p = 0.015.
        found = label_evidence(label_table(ours), label_table(theirs))
        verdict = decide_on(found, RULES, anchor=anchored(850))
        assert rule(verdict, "anchor").passed
        assert verdict.anchor.moves == ""

    def test_that_the_recipe_names_never_moves(self):
        assert verdict_of(anchored(800, fixed=True), candidate=850).anchor.moves == ""

    def test_does_not_count_once_the_metric_has_changed(self):
        verdict = verdict_of(anchored(900, metric="f1"), candidate=840, baseline=850)
        assert verdict.outcome == "promoted"
        assert verdict.anchor.moves == "gate.metric has changed from f1 to accuracy"
        found = rule(verdict, "anchor")
        assert (found.vetoes, found.difference) == (False, pytest.approx(-0.06))
        assert "This does not count: gate.metric has changed" in found.sentence

    def test_does_not_count_once_the_labels_have_changed(self):
        found = evidence(candidate_labels=(*LABELS, "weather"), baseline_labels=LABELS)
        rules = RULES.model_copy(update={"new_label_floor": 0.0})
        verdict = decide_on(found, rules, anchor=anchored(1000))
        assert verdict.outcome == "promoted"
        assert verdict.anchor.moves == "the labels have changed"
        fixed = decide_on(found, rules, anchor=anchored(1000, fixed=True))
        assert fixed.outcome == "rejected"

    def test_that_cannot_be_scored_rejects_with_a_remedy(self):
        lost = Anchor(state=STATE, problem="The anchor 1a2b cannot be restored: it is gone.")
        verdict = verdict_of(lost)
        assert verdict.outcome == "rejected"
        assert "The anchor 1a2b cannot be restored: it is gone." in verdict.summary
        assert "set gate.anchor to a version that is there, or to none" in verdict.summary

    def test_of_other_examples_rejects(self):
        verdict = verdict_of(anchored(scores=label_table(right(800, 900))))
        assert verdict.outcome == "rejected"
        assert "The anchor has no answer to 100 test examples" in verdict.summary

    def test_examples_that_it_saw_in_training_do_not_count(self):
        seen = np.stack([np.arange(900), np.arange(900) * 7], axis=1).astype(np.uint64)
        verdict = verdict_of(anchored(1000, seen=seen), candidate=850)
        assert rule(verdict, "anchor").examples == 100

    def test_first_release_becomes_it(self):
        first = Anchor(state=AnchorState(moves="it is the first release"))
        verdict = decide_on(evidence(baseline=300), anchor=first, baseline="untrained base")
        assert verdict.anchor.moves == "it is the first release"
        assert "anchor" not in [each.rule for each in verdict.rules]

    def test_of_losses_is_compared_by_loss(self):
        found = paired_losses(gain=0.0, spread=0.05)
        better = paired_losses(gain=0.5, spread=0.05).candidate
        rules = GateRecipe(metric="loss", margin=0.05)
        verdict = decide_on(found, rules, anchor=Anchor(state=STATE, scores=better))
        assert rule(verdict, "not worse").passed and not rule(verdict, "anchor").passed

    def test_of_preferences_is_not_compared(self):
        found = dataclasses.replace(paired_losses(), task="instruction")
        table = found.candidate.append_column("preferred", [[0.5] * found.candidate.num_rows])
        found = dataclasses.replace(found, candidate=table, baseline=table)
        rules = GateRecipe(metric="preferred")
        outcome = rule(decide_on(found, rules, anchor=Anchor(state=STATE)), "anchor")
        assert (outcome.vetoes, outcome.inconclusive) == (False, True)


class TestRecipe:
    def test_an_anchor_needs_a_margin(self):
        with pytest.raises(ValueError, match="set anchor_margin"):
            GateRecipe(claim="better", margin=0)
        assert GateRecipe(claim="better", margin=0, anchor="none").anchor == "none"
