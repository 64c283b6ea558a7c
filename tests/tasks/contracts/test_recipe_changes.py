"""The form: what it changes of a recipe, and what it leaves alone."""

import copy

import pytest

from tasks.contracts.errors import BadRecipe
from tasks.contracts.recipe import parse_recipe
from tasks.contracts.recipe_changes import NO_CHANGES, Changes
from tests.tasks.contracts.samples import MINIMAL


def changed(changes: Changes) -> dict:
    values = copy.deepcopy(MINIMAL)
    changes.apply(values)
    return values


class TestChanges:
    def test_say_nothing_by_default(self):
        assert changed(NO_CHANGES) == MINIMAL
        assert changed(Changes.model_validate({})) == MINIMAL

    @pytest.mark.parametrize(
        ("field", "value", "path"),
        [
            ("data", "new.csv", ("data", "uri")),
            ("base_model", "hf://a/b", ("model", "uri")),
            ("epochs", 7, ("training", "epochs")),
            ("learning_rate", 0.01, ("training", "learning_rate")),
            ("max_length", 99, ("training", "max_length")),
            ("quantization", "none", ("quantization",)),
        ],
    )
    def test_each_field_of_the_form_sets_the_recipe_s(self, field, value, path):
        values = changed(Changes(**{field: value}))
        parse_recipe(values, "r.yaml")
        for name in path:
            values = values[name]
        assert values == value

    def test_every_field_is_tested_above_or_below(self):
        tested = {"data", "base_model", "epochs", "learning_rate", "max_length", "quantization"}
        assert set(Changes.model_fields) == {*tested, "other"}

    def test_are_shown_as_on_the_command_line(self):
        assert NO_CHANGES.words() == ""
        words = Changes(epochs=3, other=("gate.margin=0.02",)).words()
        assert words == "training.epochs=3, gate.margin=0.02"

    def test_other_fields_are_read_as_yaml(self):
        values = changed(Changes(other=("gate.floors={f1: 0.9}", "publish.targets = [a, b]")))
        assert values["gate"]["floors"] == {"f1": 0.9}
        assert values["publish"]["targets"] == ["a", "b"]

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("training.epochs", "no '='"),
            ("=3", "no '='"),
            ("name.first=x", "'name' is a value"),
            ("name=[", "a value as in YAML"),
        ],
    )
    def test_what_cannot_be_read_is_refused_by_its_words(self, setting, message):
        with pytest.raises(BadRecipe) as caught:
            changed(Changes(other=(setting,)))
        assert message in str(caught.value) and setting in str(caught.value)


class TestLocks:
    @pytest.mark.parametrize(
        "setting",
        [
            "gate.margin=0.9",
            "gate={margin: 0.9}",
            "publish.targets=[hf://me/mine]",
            "announce.channel=production",
            "name=other",
            "store=/tmp/elsewhere",
            "unlocked=[gate]",
        ],
    )
    def test_a_form_cannot_change_what_is_released_and_where(self, setting):
        with pytest.raises(BadRecipe, match="what a form or an event must not change"):
            Changes(other=(setting,)).check_unlocked({})

    def test_a_form_can_change_what_the_recipe_unlocks(self):
        changes = Changes(other=("gate.margin=0.9",))
        changes.check_unlocked({"unlocked": ["gate.margin"]})
        changes.check_unlocked({"unlocked": ["gate"]})
        with pytest.raises(BadRecipe, match=r"change of gate\.margin"):
            changes.check_unlocked({"unlocked": ["gate.marg"]})

    def test_a_form_can_change_how_a_model_is_trained(self):
        Changes(epochs=3, data="b.csv", other=("training.seed=2",)).check_unlocked({})
