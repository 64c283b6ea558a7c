"""Recipes by name: shipped ones, files, and objects on S3."""

from pathlib import Path

import boto3
import pytest

from flows.recipe_files import full_name, read_recipe, shipped_recipes
from tasks.contracts.errors import BadRecipe, NotFound
from tasks.contracts.recipe_changes import Changes

MINIMAL = "name: mine\ndata: {uri: a.csv}\nmodel: {uri: base}\n"


class TestShipped:
    @pytest.mark.parametrize("name", shipped_recipes())
    def test_every_one_is_valid(self, name):
        recipe = read_recipe(name)
        assert recipe.name == name
        assert recipe.model.ship == "merged" or not recipe.model.uri.lower().endswith("gguf")

    def test_an_unknown_name_lists_them(self):
        with pytest.raises(NotFound, match="one of: assistant, completion"):
            read_recipe("nwes")


class TestFiles:
    def test_are_named_by_their_whole_path_for_workers(self, tmp_path, monkeypatch):
        (tmp_path / "mine.yaml").write_text(MINIMAL)
        monkeypatch.chdir(tmp_path)
        assert full_name("mine.yaml") == str(tmp_path / "mine.yaml")
        assert read_recipe(full_name("mine.yaml")).name == "mine"

    def test_a_shipped_recipe_keeps_its_name(self):
        assert full_name("news") == "news"
        with pytest.raises(NotFound):
            full_name("nwes")

    @pytest.mark.parametrize("data", [b"name: [\n", b"name: \xff\n"])
    def test_that_are_not_yaml_are_refused_by_name(self, tmp_path, data):
        (tmp_path / "bad.yaml").write_bytes(data)
        with pytest.raises(BadRecipe, match=r"bad.yaml.*expected a YAML file"):
            read_recipe(str(tmp_path / "bad.yaml"))

    def test_changes_are_applied_before_the_recipe_is_checked(self, tmp_path):
        path = Path(tmp_path / "mine.yaml")
        path.write_text(MINIMAL)
        assert read_recipe(str(path), Changes(epochs=9)).training.epochs == 9
        with pytest.raises(BadRecipe, match=r"training.epoch: unknown field"):
            read_recipe(str(path), Changes(other=("training.epoch=9",)))


class TestS3:
    def test_a_recipe_is_read_from_a_bucket(self, s3_env):
        boto3.client("s3").put_object(Bucket=s3_env, Key="recipes/mine.yaml", Body=MINIMAL.encode())
        assert read_recipe(f"s3://{s3_env}/recipes/mine.yaml").name == "mine"
        with pytest.raises(NotFound, match="no such object"):
            read_recipe(f"s3://{s3_env}/recipes/other.yaml")
