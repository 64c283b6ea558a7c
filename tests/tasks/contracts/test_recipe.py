"""The recipe: its defaults, its files, and what is refused with which message."""

import pytest

from tasks.contracts.base import Contract
from tasks.contracts.errors import BadRecipe
from tasks.contracts.recipe import Recipe, parse_recipe
from tests.tasks.contracts.samples import MINIMAL, with_field


def fields_of(model, path=""):
    """Every field of a recipe and its parts, with its path."""
    for name, field in model.model_fields.items():
        if name != "schema_version":
            yield f"{path}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Contract):
            yield from fields_of(field.annotation, f"{path}{name}.")


class TestDefaults:
    def test_only_name_data_and_model_must_be_given(self):
        assert parse_recipe(MINIMAL, "r.yaml").training.epochs == 3

    @pytest.mark.parametrize("missing", ["name", "data", "model"])
    def test_each_of_the_three_is_required_by_name(self, missing):
        data = {key: value for key, value in MINIMAL.items() if key != missing}
        with pytest.raises(BadRecipe, match=f"{missing}: field required"):
            parse_recipe(data, "r.yaml")

    def test_every_field_has_a_title_and_a_description_for_the_form(self):
        assert [path for path, field in fields_of(Recipe) if not field.title] == []
        assert [path for path, field in fields_of(Recipe) if not field.description] == []


BAD = {
    "unknown field": ("trainin", {}, r"trainin: unknown field; did you mean 'training'\?"),
    "unknown nested": ("training.epoch", 2, r"training.epoch: .* did you mean 'epochs'\?"),
    "unknown, nothing near": ("lora.zzz", 2, r"lora.zzz: unknown field; known here: r, alpha"),
    "wrong type": ("training.epochs", "many", r"training.epochs: found 'many'; .*valid integer"),
    "below bound": (
        "training.epochs",
        0,
        r"training.epochs: found 0; .*greater than or equal to 1",
    ),
    "bad name": ("name", "My Model", r"name: found 'My Model'; "),
    "unknown choice": ("quantization", "int3", r"quantization: found 'int3'; .*'none' or 'nf4'"),
}


class TestRefusals:
    @pytest.mark.parametrize(("path", "value", "message"), BAD.values(), ids=BAD)
    def test_names_the_field_what_was_found_and_the_fix(self, path, value, message):
        with pytest.raises(BadRecipe, match=message):
            parse_recipe(with_field(path, value), "r.yaml")

    def test_all_problems_are_reported_at_once(self):
        data = with_field("training", {"epoch": 2, "learning_rate": "hi", "seed": -1})
        with pytest.raises(BadRecipe) as caught:
            parse_recipe(data, "r.yaml")
        assert "3 problems" in str(caught.value)
        for path in ("training.epoch:", "training.learning_rate:", "training.seed:"):
            assert path in str(caught.value)

    def test_a_recipe_that_is_not_a_mapping(self):
        with pytest.raises(BadRecipe, match="found list"):
            parse_recipe([], "r.yaml")


class TestDigest:
    def test_differs_with_any_field(self):
        one = parse_recipe(MINIMAL, "r").digest
        assert parse_recipe(with_field("gate.margin", 0.03), "r").digest != one

    def test_is_the_same_whether_defaults_are_written_out_or_not(self):
        assert (
            parse_recipe(with_field("training.epochs", 3), "r").digest
            == parse_recipe(MINIMAL, "r").digest
        )
