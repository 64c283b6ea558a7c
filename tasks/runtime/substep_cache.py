"""Records of work smaller than a step: a shard that was read, a shard that was tokenized, an
answer that was paid for.

The same idea as a step's record in tasks/runtime/cache.py, with the same parts in its key, but
without a Prefect task of its own: a hundred trivial tasks cost 3.5 s.
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
    """What is known about one kind of work, `keys/<name>/<key>.json` in the store.

    Args:
        name: The kind of work.
        step: The step it belongs to: refreshing that does this work anew too.
        context: Where, and what is to be done anew. `context.repair` changes nothing here: what a
            record names is looked for on every use anyway.
        code: Modules that decide the result, with all that they import of ours.
        libraries: Distributions that decide it.
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
        # What this run made itself is known even while it refreshes.
        self._made: dict[str, dict[str, Any]] = {}
        self._whole: dict[str, bool] = {}

    def key(self, inputs: dict[str, Any]) -> str:
        """The key of a piece of work: 64 hexadecimal digits."""
        return digest_of({**self._common, "inputs": inputs})

    def get(self, key: str) -> dict[str, Any] | None:
        """What was recorded under a key, if every artifact that it names is still whole.

        A record names its artifacts as `artifact` or as a list of entries `shards`, each with an
        `artifact` of its own; it may name none.
        """
        if key in self._made:
            return self._made[key]
        if self._refresh:
            return None
        record = self._store.read_json(f"keys/{self._name}/{key}.json")
        if record is None or not all(map(self._holds, _artifacts(record))):
            return None
        return record

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Record work whose artifacts are in the store.

        Raises:
            StorageFailed, NoAccess: The store cannot be written.
        """
        self._made[key] = record
        self._store.objects.write(f"keys/{self._name}/{key}.json", orjson.dumps(record))

    def _holds(self, artifact: Artifact) -> bool:
        if not self._whole.get(artifact.digest):
            self._whole[artifact.digest] = self._store.holds(artifact)
        return self._whole[artifact.digest]


def _artifacts(record: dict[str, Any]) -> list[Artifact]:
    entries = record.get("shards", [record])
    return [Artifact.model_validate(entry["artifact"]) for entry in entries if "artifact" in entry]
