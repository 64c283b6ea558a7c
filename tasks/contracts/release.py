"""Releases, their deployment events and the deployment log."""

from __future__ import annotations

import uuid
from typing import ClassVar, Literal

from pydantic import ConfigDict

from tasks.contracts.artifacts import Artifact
from tasks.contracts.base import Contract
from tasks.contracts.verdict import Verdict

# Any fixed UUID will do: it keeps this project's event ids apart from other UUIDv5 ids.
EVENT_NAMESPACE = uuid.UUID("6f0f3a52-6c2b-5d0e-9f5e-0b1f6f2f7a11")
VERSION_DIGITS = 12


Cause = Literal["release", "rollback"]
"""Why a release is deployed. A consumer serves it in either case."""


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
    cause: Cause = "release"
    by: str = ""
    """Who rolled back or approved, as stated there."""
    reason: str = ""


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


class Hold(Contract):
    """A person's word that something must not be released.

    Attributes:
        by: Who, as stated.
        reason: Why.
        at: UTC, ISO 8601.
    """

    by: str
    reason: str
    at: str


class Quarantine(Hold):
    """A release that must not be deployed again, on any channel.

    Attributes:
        version, digest: Of its files, whoever makes them again.
    """

    version: str
    digest: str


class LogEntry(Contract):
    """One numbered entry of a model's log.

    What stands, quarantines and a freeze, is repeated in every entry, so the newest one says it
    all.

    Attributes:
        number: Its position, from 1, without gaps.
        kind: `revealing`: a publisher has begun to reveal `release`, with this number as its
            fencing token; `deployed`: consumers serve it from now on. `quarantined`, `lifted`,
            `frozen` and `unfrozen` change nothing that is served. Readers skip kinds that they do
            not know.
        at: UTC, ISO 8601.
        run: Name of the flow run that wrote it; empty for a command.
        release: The release it is about; for `frozen` and `unfrozen`, the deployed one.
        event: The event, for entries that announce one.
        cause: Why `release` is revealed and deployed.
        by, reason: Who rolled back, approved, quarantined or froze, as stated, and why.
        undone: Number of the entry that a rollback leaves; 0 without one.
        targets: Where to reveal it; empty: where its provenance says.
        quarantined, frozen: What stands after this entry.
    """

    # An entry of a newer version may say more.
    model_config = ConfigDict(extra="ignore")

    schema_version: int = 1
    number: int
    kind: str
    at: str
    run: str
    release: Release
    event: DeploymentEvent | None = None
    cause: Cause = "release"
    by: str = ""
    reason: str = ""
    undone: int = 0
    targets: tuple[str, ...] = ()
    quarantined: tuple[Quarantine, ...] = ()
    frozen: Hold | None = None
