"""A recipe for a tiny language model, its data and its store, for tests of whole runs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.release import deployment_log
from tasks.release.provenance import provenance_of
from tasks.storage.objects import open_objects
from tasks.storage.store import Store
from tests.flows.running import changed, run_flow
from tests.tasks.samples import write_jsonl


def questions(count: int) -> list[dict[str, str]]:
    """Rows of the construction FAQ, with their columns' own names."""
    package = Path(find_spec("zaragoza_construction_faq").submodule_search_locations[0])
    lines = (package / "data" / "faq-en.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{"q": row["q"], "a": row["a"][:200]} for row in rows][:count]


class LanguagePlace:
    """A recipe for a language model, its data and its store, all in one folder."""

    def __init__(self, folder: Path, base: Path, task: str, rows: list[dict], **data: Any) -> None:
        self.folder, self.base, self.task, self.more = folder, base, task, data
        write_jsonl(folder / "data.jsonl", rows)

    def run(self, **changes: Any):
        """Run the flow; returns its final state."""
        data = {
            "name": "tiny",
            "task": self.task,
            "data": {"uri": str(self.folder / "data.jsonl"), **self.more},
            "model": {"uri": str(self.base)},
            "lora": {"r": 4, "dropout": 0},
            "training": {"epochs": 2, "max_length": 96, "learning_rate": 0.01, "batch_size": 8},
            "evaluation": {"slices": ["length"]},
            "gate": {"min_examples": 10, "margin": 0.1, "slice_veto": False},
            "publish": {"targets": [str(self.folder / "releases")]},
            "store": str(self.folder / "store"),
        }
        return run_flow(changed(data, changes), self.folder)

    @property
    def store(self) -> Store:
        return Store(open_objects(str(self.folder / "store")))

    def deployed(self, name: str = "tiny"):
        return deployment_log.deployed(self.store, name, "production")

    def provenance(self, name: str = "tiny") -> dict:
        """The deployed release's provenance."""
        return provenance_of(self.deployed(name).release, self.store)
