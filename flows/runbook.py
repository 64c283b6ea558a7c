"""The runbook's section on a cause, for the page of a run: nobody should have to look for it."""

from __future__ import annotations

import functools
from importlib import resources

FILE = "infra/RUNBOOK.md"


@functools.cache
def runbook() -> dict[str, str]:
    """The runbook's sections by heading, as markdown; empty if it was not installed."""
    try:
        text = resources.files("infra").joinpath("RUNBOOK.md").read_text()
    except (FileNotFoundError, ModuleNotFoundError):
        return {}
    _, *sections = text.split("\n## ")
    return {
        heading: body.strip() for heading, _, body in (each.partition("\n") for each in sections)
    }
