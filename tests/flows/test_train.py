"""What is done before a run, to save it time."""

import pytest

from flows import train
from tasks.contracts.errors import NotFound
from tasks.contracts.recipe import Recipe


class TestForeseeing:
    @pytest.mark.parametrize(
        "problem", [NotFound("data.uri", "nothing", "a file", "name one"), PermissionError("no")]
    )
    def test_leaves_it_to_the_run_to_tell_what_is_wrong(self, monkeypatch, problem):
        asked = []

        def resolve(uri, kind):
            asked.append(uri)
            raise problem

        monkeypatch.setattr(train, "resolve", resolve)
        train.preload_if_data_changed(
            Recipe(name="news", data={"uri": "texts.csv"}, model={"uri": "package:some/model"})
        )
        assert asked == ["texts.csv"]
