"""The model card: what someone who finds the release reads."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from tasks.release.card import model_card
from tests.tasks.release.conftest import OPTIONAL


class TestCard:
    def test_shows_optional_results(self, inputs):
        card = model_card(inputs(**OPTIONAL), "")
        assert "`guard.jsonl` (digest `of guard`), 20 examples" in card
        assert "The LLM judge `wise` preferred its answers 10 times" in card
        assert "| ships | acc | 0.2500 | 0.5000 | 9 |" in card

    def test_omits_optional_results_that_there_are_none_of(self, inputs):
        card = model_card(inputs(), "")
        assert "judge" not in card.split("## Data")[0] and "Benchmarks" not in card

    @pytest.mark.parametrize(
        "uri",
        [
            "hf://owner/name",
            "hf://owner/name@main",
            "hf://models/owner/name",
            "hf://owner/name/name.Q8_0.gguf",
            "hf://owner/name@refs/pr/3/subfolder",
        ],
    )
    def test_names_the_base_by_a_repository_id(self, inputs, uri):
        given = inputs()
        base = given.base.model_copy(update={"uri": uri})
        card = ModelCard(model_card(given.model_copy(update={"base": base}), ""))
        assert card.data.base_model == "owner/name"

    @pytest.mark.parametrize("uri", ["models/mine", "s3://bucket/base", "package:base/model"])
    def test_names_no_base_that_is_not_on_the_hub(self, inputs, uri):
        given = inputs()
        base = given.base.model_copy(update={"uri": uri})
        card = ModelCard(model_card(given.model_copy(update={"base": base}), ""))
        assert card.data.base_model is None

    def test_names_local_files_without_their_folder(self, inputs):
        given = inputs()
        data = given.data.model_copy(update={"uri": ("/home/me/secret/rows.csv", "s3://b/rows")})
        card = model_card(given.model_copy(update={"data": data}), "")
        assert "`rows.csv`, `s3://b/rows`" in card and "secret" not in card

    def test_shows_the_warnings_of_all_steps_once(self, inputs):
        given = inputs()
        loaded = given.candidate.loaded.model_copy(update={"warnings": ("twice", "twice", "once")})
        candidate = given.candidate.model_copy(update={"loaded": loaded})
        card = model_card(given.model_copy(update={"candidate": candidate}), "")
        assert "## Warnings\n\n- twice.\n- once.\n" in card
        assert "## Warnings" not in model_card(given, "")

    def test_has_the_license_of_the_base_unless_the_recipe_states_one(self, inputs):
        given = inputs()
        assert ModelCard(model_card(given, "mit")).data.license == "mit"
        publish = given.publish.model_copy(
            update={"license": "apache-2.0", "languages": ("en", "de")}
        )
        stated = ModelCard(model_card(given.model_copy(update={"publish": publish}), "mit"))
        assert (stated.data.license, stated.data.language) == ("apache-2.0", ["en", "de"])

    def test_leaves_out_what_is_unknown(self, inputs):
        card = ModelCard(model_card(inputs(), ""))
        assert (card.data.license, card.data.language) == (None, None)
