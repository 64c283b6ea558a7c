"""Caches work smaller than a step: reading a shard, tokenizing it, asking an LLM judge.

Keys and records are made like those of steps (tasks/runtime/cache.py), but there is no Prefect task
for each piece of work: a hundred trivial tasks cost 3.5 s.
"""

from __future__ import annotations

from typing import Any

import orjson

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import digest_of
from tasks.runtime.code_digest import code_digest, library_versions
from tasks.runtime.context import RunContext
from tasks.storage.store import open_store


class SubstepCache:
    """The records of one kind of work, `keys/<name>/<key>.json` in the store.

    Args:
        name: The kind of work.
        step: The step that the work is part of: refreshing the step repeats the work.
        context: The run. Its `repair` has no effect here: every use of a record checks that its
            artifacts are complete.
        code: Modules whose code decides the result. What they import of ours is added.
        libraries: Distributions whose versions decide the result.
    """

    def __init__(
        self,
        name: str,
        step: str,
        context: RunContext,
        code: tuple[str, ...],
        libraries: tuple[str, ...],
    ) -> None:
        self._name = name
        self._refresh = step in context.refresh
        self._store = open_store(context.store)
        self._common = {
            "work": name,
            "code": code_digest(code),
            "libraries": library_versions(libraries),
        }
        # What this run has recorded itself is used even while it refreshes.
        self._own: dict[str, dict[str, Any]] = {}
        self._complete: dict[str, bool] = {}

    def key(self, inputs: dict[str, Any]) -> str:
        """The key of a piece of work: 64 hexadecimal digits."""
        return digest_of({**self._common, "inputs": inputs})

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a key, if every artifact that it names is still complete; else None.

        A record names its artifact as `artifact`, or several in `shards`, a list of entries with an
        `artifact` each. It may name none.
        """
        if key in self._own:
            return self._own[key]
        if self._refresh:
            return None
        record = self._store.read_json(f"keys/{self._name}/{key}.json")
        if record is None or not all(map(self._holds, _artifacts(record))):
            return None
        return record

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Write the record of work whose artifacts are in the store.

        Raises:
            StorageFailed, NoAccess: The store cannot be written.
        """
        self._own[key] = record
        self._store.objects.write(f"keys/{self._name}/{key}.json", orjson.dumps(record))

    def _holds(self, artifact: Artifact) -> bool:
        if not self._complete.get(artifact.digest):
            self._complete[artifact.digest] = self._store.holds(artifact)
        return self._complete[artifact.digest]


def _artifacts(record: dict[str, Any]) -> list[Artifact]:
    entries = record.get("shards", [record])
    return [Artifact.model_validate(entry["artifact"]) for entry in entries if "artifact" in entry]
