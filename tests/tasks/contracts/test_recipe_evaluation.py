"""The recipe's sections on scoring and the gate: what is refused, with which message."""

from __future__ import annotations

import pytest

from tasks.contracts.errors import BadRecipe
from tasks.contracts.recipe import parse_recipe
from tests.tasks.contracts.samples import MINIMAL, with_field

BAD = {
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
}


class TestRefusals:
    @pytest.mark.parametrize(("path", "value", "message"), BAD.values(), ids=BAD)
    def test_names_the_field_what_was_found_and_the_fix(self, path, value, message):
        with pytest.raises(BadRecipe, match=message):
            parse_recipe(with_field(path, value), "r.yaml")


JUDGED = {
    **MINIMAL,
    "task": "instruction",
    "evaluation": {
        "slices": ["length"],
        "generate_tokens": 8,
        "llm_judge": {"url": "http://127.0.0.1/v1/", "model": "wise"},
    },
    "gate": {"metric": "preferred", "claim": "better"},
}


class TestLlmJudge:
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
        with pytest.raises(BadRecipe, match=message):
            parse_recipe(with_field(path, value, JUDGED), "r.yaml")

    @pytest.mark.parametrize(
        ("field", "value"),
        [("api_key_env", "sk-secret"), ("url", "http://me:sk-secret@x/v1"), ("url", "sk-secret")],
    )
    def test_a_key_in_the_wrong_place_is_not_repeated(self, field, value):
        with pytest.raises(BadRecipe, match=f"llm_judge.{field}: (it must|found what)") as caught:
            parse_recipe(with_field(f"evaluation.llm_judge.{field}", value), "r.yaml")
        assert "secret" not in str(caught.value)
