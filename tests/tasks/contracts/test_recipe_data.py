"""The recipe's data section: what is refused, with which message."""

from __future__ import annotations

import pytest

from tasks.contracts.errors import BadRecipe
from tasks.contracts.recipe import parse_recipe
from tests.tasks.contracts.samples import with_field

BAD = {
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
    "empty uri": ("data.uri", "", r"data.uri: .*name at least one"),
}


class TestRefusals:
    @pytest.mark.parametrize(("path", "value", "message"), BAD.values(), ids=BAD)
    def test_names_the_field_what_was_found_and_the_fix(self, path, value, message):
        with pytest.raises(BadRecipe, match=message):
            parse_recipe(with_field(path, value), "r.yaml")
