"""Training's flow: what is preloaded before a run."""

import pytest

from flows import train
from tasks.contracts.errors import NotFound
from tasks.contracts.recipe import Recipe


class TestPreloading:
    @pytest.mark.parametrize(
        "problem", [NotFound("data.uri", "nothing", "a file", "name one"), PermissionError("no")]
    )
    def test_leaves_errors_to_the_run(self, monkeypatch, problem):
        resolved = []

        def resolve(uri, kind):
            resolved.append(uri)
            raise problem

        monkeypatch.setattr(train, "resolve", resolve)
        train.preload_if_data_changed(
            Recipe(name="news", data={"uri": "texts.csv"}, model={"uri": "package:some/model"})
        )
        assert resolved == ["texts.csv"]
