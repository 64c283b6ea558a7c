"""Each cause has its section in the runbook, whose commands exist."""

import re

import pytest

from flows.cli import app
from flows.runbook import runbook
from tasks.contracts import errors
from tasks.contracts.errors import BurnishError
from tasks.contracts.recipe import Recipe


def causes() -> set[str]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return {kind("", "", "", "").title for kind in kinds if _has_cause(kind)}


def _has_cause(kind: type) -> bool:
    # A damaged artifact is one of storage, and made of other parts.
    return issubclass(kind, BurnishError) and kind is not errors.DamagedArtifact


class TestRunbook:
    @pytest.mark.parametrize("cause", sorted(causes()))
    def test_has_a_section_for_each_cause(self, cause):
        assert len(runbook()[cause]) > 80

    @pytest.mark.parametrize("ending", ["Crashed", "Held", "Waiting for approval"])
    def test_has_a_section_for_each_ending_that_needs_a_person(self, ending):
        assert runbook()[ending]

    def test_names_commands_that_exist(self):
        named = set(re.findall(r"`burnish ([a-z-]+)", "\n".join(runbook().values())))
        known = {each.name or each.callback.__name__ for each in app.registered_commands}
        assert named - {name.replace("_", "-") for name in known} == set()

    def test_names_fields_that_exist(self):
        text = "\n".join(runbook().values())
        for group, field in re.findall(r"`(data|training|gate|plan)\.([a-z_]+)`", text):
            section = Recipe.model_fields[group].annotation
            assert field in section.model_fields, f"{group}.{field}"
