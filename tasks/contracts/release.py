"""Releases, their deployment events and the deployment log."""

from __future__ import annotations

import uuid
from typing import ClassVar, Literal

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.verdict import Verdict

# Any fixed UUID will do: it keeps this project's event ids apart from other UUIDv5 ids.
EVENT_NAMESPACE = uuid.UUID("6f0f3a52-6c2b-5d0e-9f5e-0b1f6f2f7a11")
VERSION_DIGITS = 12


class Publication(Contract):
    """One place where a release can be fetched.

    Attributes:
        target: The target's URI, as in the recipe.
        uri: The release's own, immutable location there.
        revision: What pins it: a Hub commit, or the release's digest in a folder or bucket.
    """

    target: str
    uri: str
    revision: str


class Release(Contract):
    """A published model.

    Attributes:
        name: The recipe's name.
        channel: The channel it is released on.
        version: The first digits of `digest`.
        digest: Digest of the published files, without the card.
        artifact: The model in the store.
        gguf: The same model as GGUF in the store; None if the release has none.
        provenance: Artifact (kind `provenance`) with recipe, data, code and library versions, and
            the hashes of the inputs it was trained and validated on (`seen.npy`).
        publications: Where it is published; empty until it is revealed.
    """

    cache_key_excludes: ClassVar[frozenset[str]] = frozenset({"publications"})

    schema_version: int = 1
    name: str
    channel: str
    version: str
    digest: str
    artifact: Artifact
    gguf: Artifact | None = None
    provenance: Artifact
    publications: tuple[Publication, ...] = ()


class Deployment(Contract):
    """The data of a deployment event: everything that a consumer needs to serve the model."""

    model: str
    channel: str
    task: str
    version: str
    digest: str
    publications: tuple[Publication, ...]
    recipe_digest: str
    metrics: dict[str, float]
    baseline_metrics: dict[str, float]
    verdict: Verdict
    provenance: str
    previous: str | None
    """Version of the release that this one replaces."""


class DeploymentEvent(Contract):
    """CloudEvents 1.0 in JSON (https://github.com/cloudevents/spec, version 1.0.2)."""

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: Literal["application/json"] = "application/json"
    data: Deployment

    @staticmethod
    def make_id(source: str, kind: str, release_digest: str, entry_before: int) -> str:
        """UUIDv5 of the source (model and channel), the kind, the release and the log's position.

        A repeat has the same id; a later return to an older release, or the same release on another
        channel, has another.
        """
        name = f"{source}/{kind}/{release_digest}/{entry_before}"
        return str(uuid.uuid5(EVENT_NAMESPACE, name))


class LogEntry(Contract):
    """One numbered entry of a model's log.

    Attributes:
        number: Its position, from 1, without gaps.
        kind: `revealing`: a publisher has begun to reveal `release`, with this number as its
            fencing token; `deployed`: consumers serve it from now on.
        at: UTC, ISO 8601.
        run: Name of the flow run that wrote it.
        release: The release it is about.
        event: The event, for entries that announce one.
    """

    schema_version: int = 1
    number: int
    kind: Literal["revealing", "deployed"]
    at: str
    run: str
    release: Release
    event: DeploymentEvent | None = None
