"""The recipe: what is refused, and how it is said."""

from pathlib import Path

import pytest
import yaml

from flows.cli import apply_setting, find_recipe
from tasks.contracts.base import Contract
from tasks.contracts.errors import BadRecipe, NotFound
from tasks.contracts.recipe import Recipe, parse_recipe

LEAST = {"name": "news", "data": {"uri": "data.csv"}, "model": {"uri": "model"}}


def with_(path: str, value) -> dict:
    data = yaml.safe_load(yaml.safe_dump(LEAST))
    apply_setting(data, f"{path}={yaml.safe_dump(value)}")
    return data


def fields_of(model, path=""):
    """Every field of a recipe and its parts, with its path."""
    for name, field in model.model_fields.items():
        if name != "schema_version":
            yield f"{path}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Contract):
            yield from fields_of(field.annotation, f"{path}{name}.")


class TestDefaults:
    def test_only_name_data_and_model_must_be_given(self):
        assert parse_recipe(LEAST, "r.yaml").training.epochs == 3

    @pytest.mark.parametrize("missing", ["name", "data", "model"])
    def test_each_of_the_three_is_asked_for_by_name(self, missing):
        data = {key: value for key, value in LEAST.items() if key != missing}
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
    "shares": (
        "data.split",
        {"test": 0.6, "validation": 0.5},
        r"data.split: .*sum must be below 1",
    ),
    "column split": ("data.split", {"by": "column"}, r"data.split: 'column' must be given"),
    "group": (
        "data.split",
        {"by": "files", "group_by": "author"},
        r"data.split: 'group_by' only works with a split by hash",
    ),
    "no floors": ("gate.first_run", "floors", r"gate: .*any first candidate would pass"),
    "floor": ("gate.floors", {"accuracy": 90}, r"gate: floors.accuracy is 90"),
    "unknown floor": ("gate.floors", {"bleu": 0.5}, r"gate.floors.bleu"),
    "no margin": ("gate.margin", 0, r"gate: 'not worse' by a margin of 0"),
    "slice": ("evaluation.slices", ["region"], r"recipe: .*\['region'\].*data.keep_columns"),
    "expression": (
        "evaluation.must_match",
        "(",
        r"must_match: found '\('; .*no regular expression",
    ),
    "no schema": ("evaluation.json_schema", "{", r"json_schema: .*no usable JSON Schema"),
    "bad schema": ("evaluation.json_schema", '{"type": "objec"}', r"json_schema: .*'objec'"),
    "guard of classes": ("evaluation.guard.uri", "g.jsonl", r"evaluation.guard is for language"),
    "guard margin": ("gate.guard_margin", 0, r"gate.guard_margin: found 0.*greater than 0"),
    "judge without a model": (
        "evaluation.llm_judge.url",
        "http://x/v1",
        r"evaluation.llm_judge: url is set, but model is empty",
    ),
    "judge elsewhere": (
        "evaluation.llm_judge.url",
        "ftp://x",
        r"judge.url: it must begin with http",
    ),
    "prompt": ("evaluation.llm_judge.prompt", "{question}?", r"lacks \{answer_a\}, \{answer_b\}"),
    "empty uri": ("data.uri", "", r"data.uri: .*name at least one"),
}


class TestRefusals:
    @pytest.mark.parametrize(("path", "value", "message"), BAD.values(), ids=BAD)
    def test_names_the_field_what_was_found_and_the_fix(self, path, value, message):
        with pytest.raises(BadRecipe, match=message):
            parse_recipe(with_(path, value), "r.yaml")

    def test_all_problems_are_told_at_once(self):
        data = with_("training", {"epoch": 2, "learning_rate": "hi", "seed": -1})
        with pytest.raises(BadRecipe) as caught:
            parse_recipe(data, "r.yaml")
        assert "3 problems" in str(caught.value)
        for path in ("training.epoch:", "training.learning_rate:", "training.seed:"):
            assert path in str(caught.value)

    def test_a_recipe_that_is_not_a_mapping(self):
        with pytest.raises(BadRecipe, match="found list"):
            parse_recipe([], "r.yaml")


JUDGED = {
    **LEAST,
    "task": "instruction",
    "evaluation": {
        "slices": ["length"],
        "generate_tokens": 8,
        "llm_judge": {"url": "http://127.0.0.1/v1/", "model": "wise"},
    },
    "gate": {"metric": "preferred", "claim": "better"},
}


class TestTheJudge:
    def test_may_decide(self):
        recipe = parse_recipe(JUDGED, "r.yaml")
        assert recipe.resolved().gate.metric == "preferred"
        assert recipe.evaluation.llm_judge.url == "http://127.0.0.1/v1"

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("evaluation.llm_judge.url", "", "evaluation.llm_judge has no url"),
            ("evaluation.generate_tokens", 0, "evaluation.generate_tokens is 0"),
            (
                "evaluation.llm_judge.max_examples",
                20,
                "max_examples is 20, but the gate needs 150",
            ),
            ("gate", {"first_run": "floors", "floors": {"preferred": 0.5}}, "needs a baseline"),
            ("task", "preference", "preferred, which is not measured for preference"),
        ],
    )
    def test_needs_what_it_judges(self, path, value, message):
        data = yaml.safe_load(yaml.safe_dump(JUDGED))
        apply_setting(data, f"{path}={yaml.safe_dump(value)}")
        with pytest.raises(BadRecipe, match=message):
            parse_recipe(data, "r.yaml")

    @pytest.mark.parametrize(
        ("field", "value"),
        [("api_key_env", "sk-secret"), ("url", "http://me:sk-secret@x/v1"), ("url", "sk-secret")],
    )
    def test_a_key_in_the_wrong_place_is_not_repeated(self, field, value):
        with pytest.raises(BadRecipe, match=f"evaluation.llm_judge.{field}: it must") as caught:
            parse_recipe(with_(f"evaluation.llm_judge.{field}", value), "r.yaml")
        assert "secret" not in str(caught.value)


class TestFiles:
    def test_a_shipped_recipe_is_found_by_its_name(self):
        assert find_recipe("news").name == "news.yaml"

    def test_an_unknown_name_lists_the_shipped_ones(self):
        with pytest.raises(NotFound, match="news"):
            find_recipe("nwes")

    @pytest.mark.parametrize("path", sorted(Path("flows/recipes").glob("*.yaml")), ids=str)
    def test_every_shipped_recipe_is_valid(self, path):
        model = parse_recipe(yaml.safe_load(path.read_text()), str(path)).model
        assert model.ship == "merged" or not model.uri.lower().endswith("gguf")

    def test_the_deployment_says_the_same_as_the_shipped_recipe(self):
        deployment = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"][0]
        shipped = yaml.safe_load(find_recipe("news").read_text())
        assert deployment["parameters"]["recipe"] == shipped


class TestDigest:
    def test_differs_with_any_field(self):
        one = parse_recipe(LEAST, "r").digest
        assert parse_recipe(with_("gate.margin", 0.03), "r").digest != one

    def test_is_the_same_whether_defaults_are_written_out_or_not(self):
        assert (
            parse_recipe(with_("training.epochs", 3), "r").digest == parse_recipe(LEAST, "r").digest
        )
